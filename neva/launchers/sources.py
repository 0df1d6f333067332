"""Files that foreign launchers name by folder: training records, their images, and the `.nemo` in place of shards."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

from neva.data.sources.source import open_source
from neva.errors import ConfigError, DataError

CONVERTED = "llava.nemo"
"""What the converters write into a folder that once held Megatron's shards."""

LLAVA_PRETRAIN = "blip_laion_cc_sbu_558k.json"
_ROWS = "model_weights/model.safetensors.index.json"


def records_of(name: str, text: str) -> Path:
    """Returns the LLaVA-format file of training data `text`.

    A folder of webdataset shards is returned as it is; without shards it stands for the LLaVA-Pretrain file from which
    they would be made, in or above it.

    Raises:
        ConfigError: there is no such file.
    """
    path = Path(text)
    if path.suffix in (".json", ".jsonl"):
        return path
    if any(path.glob("*.tar")):
        return path
    for folder in (path, path.parent):
        if (folder / LLAVA_PRETRAIN).is_file():
            return folder / LLAVA_PRETRAIN
    raise ConfigError(
        f"{name} is {text!r}, and neither it nor the folder above holds {LLAVA_PRETRAIN}, nor it .tar shards; expected "
        "shards, or LLaVA-format .json or .jsonl records"
    )


def images_of(records: Path) -> Path | None:
    """Returns the folder that image paths are relative to: `images` beside the records, else their own folder.

    Shards bring their images: None.
    """
    if records.is_dir():
        return None
    images = records.parent / "images"
    return images if images.is_dir() else records.parent


def count_records(path: Path) -> int:
    """Returns the number of records in a `.json` list, of lines in a `.jsonl` file or of samples in shards.

    Raises:
        DataError: the file cannot be read or is no list.
    """
    if path.is_dir():
        return len(open_source(path))
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            return sum(1 for line in text.split("\n") if line.strip())
        records = json.loads(text)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read ({error}): give a LLaVA-format .json list or .jsonl lines"
        ) from error
    if not isinstance(records, list):
        raise DataError(f"{path} holds a {type(records).__name__}, expected a list of records")
    return len(records)


def nemo_of(name: str, text: str, remedy: str) -> Path:
    """Returns the `.nemo` that `text` is or that lies in that folder or in its `checkpoints`.

    Args:
        name: the argument, for messages.
        text: a file or a folder.
        remedy: what writes such a file.

    Raises:
        ConfigError: there is none, or more than one.
    """
    path = Path(text)
    if path.suffix == ".nemo" and path.is_file():
        return path
    found = sorted([*path.glob("*.nemo"), *path.glob("checkpoints/*.nemo")]) if path.is_dir() else []
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(str(file.relative_to(path)) for file in found)
        raise ConfigError(
            f"{name} is {text!r}, which holds {len(found)} .nemo files ({names}): name one of them"
        )
    shards = [*path.glob("latest_checkpointed_iteration.txt"), *path.glob("mp_rank_*"), *path.glob("iter_*")]
    what = "holds Megatron's own shards, which are not read here" if shards else "is or holds no .nemo"
    raise ConfigError(f"{name} is {text!r}, which {what}: {remedy}")


def language_source_of(nemo: Path) -> str:
    """Returns where the language model of a LLaVA `.nemo` is: in the file itself, or where it says.

    Raises:
        ConfigError: the file cannot be read, or names no language model.
    """
    import yaml

    try:
        with tarfile.open(nemo) as archive:
            members = {name: archive.extractfile(name) for name in (_ROWS, "model_config.yaml")}
            texts = {name: member.read() for name, member in members.items() if member is not None}
        tensors = json.loads(texts[_ROWS])["weight_map"]
        recorded = yaml.safe_load(texts["model_config.yaml"])
        source = recorded["mm_cfg"]["llm"]["from_pretrained"]
    except (tarfile.TarError, OSError, KeyError, TypeError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(
            f"{nemo} is not a .nemo of a LLaVA training ({type(error).__name__}: {error})"
        ) from error
    if any(tensor.startswith("language_model.") for tensor in tensors):
        return str(nemo)
    if source is None:
        raise ConfigError(f"{nemo} neither holds a language model nor says where one is: name another .nemo")
    return str(source)


def recorded_sources(run_folder: Path) -> tuple[str, str]:
    """Returns language model and projector source that the configuration of a run names.

    Raises:
        ConfigError: the folder's `config.yaml` does not name them.
    """
    import yaml

    path = run_folder / "config.yaml"
    try:
        mm_cfg = yaml.safe_load(path.read_text(encoding="utf-8"))["model"]["mm_cfg"]
        return str(mm_cfg["llm"]["from_pretrained"]), str(mm_cfg["pretrain_mm_mlp_adapter"])
    except (OSError, KeyError, TypeError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(
            f"{path} does not say what the run started from ({type(error).__name__}: {error}): give "
            "--megatron-load-dir the folder that it was given at first"
        ) from error
