"""What holds a trained model: a `.nemo`, the folder of an extracted one, or a checkpoint of a training run."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Protocol

from megatron.core import dist_checkpointing
from omegaconf import DictConfig, OmegaConf
from transformers import BaseImageProcessor, PreTrainedTokenizerFast

from neva.checkpoint import store
from neva.checkpoint.average import averaged_names, from_average
from neva.checkpoint.nemo_export import AVERAGED
from neva.checkpoint.state import MODEL
from neva.config.language import language_config_of
from neva.config.stored import check_stored
from neva.data.media.processor import build_image_processor, load_image_processor
from neva.data.tokenizer import from_folder, load_tokenizer
from neva.distributed.megatron_ddp import MegatronDDP
from neva.errors import CheckpointError
from neva.formats.nemo import open_nemo
from neva.formats.nemo_header import IMAGE_PROCESSOR_FILE
from neva.model.llava import NevaModel
from neva.weights.fingerprint import check_base
from neva.weights.load import load_parts
from neva.weights.resolve import origins, parts_among, resolve_nemo

RUN_CONFIG = "config.yaml"
"""In the run folder, above that of the checkpoints."""


class TrainedModel(Protocol):
    """A model that can be loaded."""

    config: DictConfig
    """Its `model` section."""

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Returns its tokenizer."""

    def image_processor(self, model_cfg: DictConfig) -> BaseImageProcessor:
        """Returns the processor of its tower."""

    def fill(self, model: NevaModel, model_cfg: DictConfig) -> None:
        """Gives the weights, this rank's shards of them, to `model`, which `model_cfg` describes.

        Raises:
            CheckpointError: a part is neither here nor where `model_cfg` says.
        """


def open_trained(
    path: str | Path, hparams_file: str | Path | None = None, use_ema: bool = False
) -> TrainedModel:
    """Returns the model at `path`.

    Args:
        path: a `.nemo`, the folder of an extracted one, or the folder of a training checkpoint.
        hparams_file: configuration of the run that wrote a checkpoint; None: `config.yaml` of its run folder.
        use_ema: take the moving average that a checkpoint holds beside its weights.

    Raises:
        CheckpointError: it holds no LLaVA model, or no average.
    """
    if dist_checkpointing.check_is_distributed_checkpoint(str(path)):
        return _Checkpoint(Path(path), hparams_file, use_ema)
    if use_ema:
        raise CheckpointError(
            f"use_ema=true with {path}, which holds one set of weights: expected a training checkpoint, or give the "
            f"run's NAME{AVERAGED}.nemo without use_ema"
        )
    return _Nemo(path)


class _Nemo:
    def __init__(self, path: str | Path) -> None:
        self.file = open_nemo(path)
        self.config = self.file.config
        if "mm_cfg" not in self.config:
            raise CheckpointError(
                f"{path} holds a language model alone; expected what a LLaVA training wrote"
            )
        check_stored(self.config, path)

    def tokenizer(self) -> PreTrainedTokenizerFast:
        with tempfile.TemporaryDirectory() as folder:
            return from_folder(self.file.extract_tokenizer(folder))

    def image_processor(self, model_cfg: DictConfig) -> BaseImageProcessor:
        if self.file.image_processor is None:
            return build_image_processor(model_cfg.mm_cfg.vision_encoder)
        return load_image_processor(self.file.image_processor, f"{IMAGE_PROCESSOR_FILE} of {self.file.path}")

    def fill(self, model: NevaModel, model_cfg: DictConfig) -> None:
        found = resolve_nemo(self.file.path, model_cfg)
        for part, origin in found.items():
            if origin.is_nowhere:
                raise CheckpointError(f"{self.file.path} holds no {part} and names no folder that has it")
        prints = load_parts(model, found, language_config_of(model_cfg))
        check_base(self.file.manifest, prints, found, self.file.path)


class _Checkpoint:
    def __init__(self, folder: Path, hparams_file: str | Path | None, use_ema: bool) -> None:
        self.folder = folder
        self.averaged = averaged_names(folder) if use_ema else frozenset[str]()
        if use_ema and not self.averaged:
            raise CheckpointError(
                f"use_ema=true, but the run of {folder} kept no moving average of its weights (exp_manager.ema.enable)"
            )
        file = Path(hparams_file) if hparams_file else folder.resolve().parent.parent / RUN_CONFIG
        if not file.is_file():
            raise CheckpointError(
                f"the checkpoint {folder} has no configuration at {file}: give hparams_file, the {RUN_CONFIG} of its "
                "run folder"
            )
        whole = OmegaConf.load(file)
        section = OmegaConf.select(whole, "model") or OmegaConf.select(whole, "cfg")
        if not isinstance(section, DictConfig) or "mm_cfg" not in section:
            raise CheckpointError(
                f"{file} has no section `model` with `mm_cfg`; expected the configuration of a run"
            )
        check_stored(section, file)
        self.config = section

    def tokenizer(self) -> PreTrainedTokenizerFast:
        return load_tokenizer(self.config.tokenizer)

    def image_processor(self, model_cfg: DictConfig) -> BaseImageProcessor:
        return build_image_processor(model_cfg.mm_cfg.vision_encoder)

    def fill(self, model: NevaModel, model_cfg: DictConfig) -> None:
        saved = parts_among(dist_checkpointing.load_tensors_metadata(str(self.folder)))
        elsewhere = {part: origin for part, origin in origins({}, model_cfg).items() if part not in saved}
        for part, origin in elsewhere.items():
            if origin.is_nowhere:
                raise CheckpointError(
                    f"{self.folder} holds no {part}, and its run names no folder that has it"
                )
        prints = load_parts(model, elsewhere, language_config_of(model_cfg))
        backend = MegatronDDP(shards_optimizer=False)
        state = from_average(backend.model_state([model], saved), self.averaged)
        loaded = store.load(self.folder, {MODEL: state})
        check_base(loaded[store.LIGHTNING_STATE], prints, elsewhere, self.folder)
        backend.load_model([model], loaded[MODEL], saved)
