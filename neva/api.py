"""neva from Python: what `neva train`, `neva infer` and `neva convert` do, as functions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from neva.config.compose import CONF_DIR
from neva.config.load import load as load_config
from neva.config.paths import path_problems
from neva.config.show import as_override
from neva.errors import ConfigError
from neva.quick_imports import quick_imports

if TYPE_CHECKING:
    from neva.inference.prompts import ImageInput

RECIPE_OF_ANSWERS = "llava_7b_inference"
"""Whose `inference` section says how answers are generated, where `load` is not told otherwise."""


def train(config: str | Path, **overrides: Any) -> Path:
    """Trains a recipe, resuming from the run folder's last checkpoint if there is one.

    Several processes start the program again: keep the call under `if __name__ == "__main__"`.

    Args:
        config: name of a recipe, or the path of a recipe's YAML file in a configuration folder of your own.
        overrides: sections as mappings, `trainer={"max_steps": 100}`, or dotted names and groups,
            `**{"model.optim.lr": 1e-4, "model/llm": "from_checkpoint"}`.

    Returns:
        The run folder: checkpoints, metrics, the loss curve and the final `.nemo`.

    Raises:
        UserError: what the user can mend.
    """
    with quick_imports():
        from neva.training.run import train as run
    path = Path(config)
    is_file = path.suffix == ".yaml"
    cfg = load_config(
        path.stem if is_file else str(config),
        list(_words(overrides)),
        path.resolve().parent if is_file else CONF_DIR,
    )
    if problems := path_problems(cfg):
        raise ConfigError("\n".join(problems))
    return run(cfg)


def load(
    path: str | Path,
    *,
    precision: str | int = 32,
    accelerator: str = "auto",
    language_model: str | Path | None = None,
    vision_tower: str | Path | None = None,
    tokenizer: str | Path | None = None,
    **generation: Any,
) -> LoadedModel:
    """Loads a trained model, ready to answer.

    Args:
        path: the `.nemo`, or the folder of an extracted one.
        precision: of the weights: 32, 16 or bf16.
        accelerator: gpu, cpu, or auto: a GPU where there is one.
        language_model, vision_tower, tokenizer: where the parts are that the `.nemo` does not hold.
        generation: keys of the `inference` section, such as `greedy=True`, `temperature=0.7`, `tokens_to_generate=64`.

    Raises:
        UserError: a part is missing, or a key is wrong.
    """
    parts = {
        "base_model_file": language_model,
        "vision_encoder_path": vision_tower,
        "tokenizer_type": tokenizer,
    }
    values = {
        "neva_model_file": path,
        "trainer.precision": precision,
        "trainer.accelerator": accelerator,
        **parts,
        "inference": generation,
    }
    return LoadedModel(load_config(RECIPE_OF_ANSWERS, list(_words(values))))


class LoadedModel:
    """A model that answers questions about images; as a context manager it leaves its process group at the end.

    Args:
        cfg: a resolved inference configuration.
    """

    def __init__(self, cfg: Any) -> None:
        with quick_imports():
            from neva.distributed import accelerator, groups
            from neva.inference.load import load_configured

        self._cfg = cfg
        accelerator.choose(cfg.trainer.accelerator)
        device = groups.init_process_group(rank=0, world_size=1)
        groups.init_model_parallel(groups.ParallelSizes(), seed=cfg.inference.seed)
        self._assistant = load_configured(cfg, device)

    def answer(
        self, images: ImageInput | str | Sequence[ImageInput | str], text: str, system: str | None = None
    ) -> str:
        """Answers one question.

        Args:
            images: a file or a PIL image, or several of them, or `[]`.
            text: the question; without `<image>` the images stand in front of it.
            system: replaces the template's system prompt.

        Raises:
            DataError: an image cannot be read, the question is too long, or placeholders and images do not fit.
        """
        return self.answer_all([(images, text)], system)[0]

    def answer_all(
        self,
        questions: Sequence[tuple[ImageInput | str | Sequence[ImageInput | str], str]],
        system: str | None = None,
    ) -> list[str]:
        """Answers several questions, each its images and its text, `inference.batch_size` at a time; see `answer`."""
        from neva.errors import DataError
        from neva.inference.answer import answer_all
        from neva.inference.prompts import request_of

        requests = {
            number: request_of(text, tuple(_images(images)), system)
            for number, (images, text) in enumerate(questions)
        }
        found: list[str] = []
        for answers in answer_all(self._assistant, self._cfg.inference, requests):
            for answer in answers.values():
                if isinstance(answer, DataError):
                    raise answer
                found.append(answer.text)
        return found

    def close(self) -> None:
        """Leaves the process group; the model answers no more."""
        from neva.distributed import groups

        groups.destroy()

    def __enter__(self) -> LoadedModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def convert(source: str | Path, target: str | Path, **options: Any) -> str:
    """Converts between Hugging Face folders and `.nemo` files.

    Args:
        source: what is read.
        target: `name.nemo`, or a folder to create.
        options: fields of `neva.convert.options.Options`, such as `tower_path=…`, `layout="original"`.

    Returns:
        A sentence on what was done.

    Raises:
        UserError: what was found, and what was expected.
    """
    with quick_imports():
        from neva.convert.convert import convert as run
    from neva.convert.options import Options

    known = Options.__dataclass_fields__
    if unknown := sorted(set(options) - set(known)):
        raise ConfigError(f"no option {unknown[0]!r} of a conversion; there are {', '.join(known)}")
    paths = {
        name: Path(value) for name, value in options.items() if name.endswith("_path") and value is not None
    }
    return run(Path(source), Path(target), Options(**{**options, **paths}))


def _words(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yields mappings within mappings as overrides of their leaves."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _words(value, f"{prefix}{key}.")
        elif isinstance(value, (str, Path)) and "/" not in key:
            quoted = str(value).replace("'", "\\'")
            yield f"{prefix}{key}='{quoted}'"
        else:
            yield f"{prefix}{key}={as_override(value)}"


def _images(images: Any) -> list[Any]:
    several = images if isinstance(images, (list, tuple)) else [images]
    return [Path(image) if isinstance(image, str) else image for image in several]
