"""What a `.nemo`, or the folder it was extracted to, says before any weight is read: no torch is imported here.

    model_config.yaml                      the resolved `model` section
    tokenizer/…                            files of a Hugging Face tokenizer
    image_processor/preprocessor_config.json
    model_weights/model-00001.safetensors  whole (unsharded) tensors under native names, with their index
    manifest.json                          sha256 of each member, versions, source, trained and frozen parts

NeMo 1 wrote a configuration and a distributed checkpoint, and no manifest.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from neva.errors import CheckpointError, ConfigError, UserError, reason
from neva.formats.archive import ByteRange, members_of, read_range
from neva.formats.hf_files import weight_map
from neva.formats.json import decode_text, parse_object

CONFIG_FILE = "model_config.yaml"
MANIFEST_FILE = "manifest.json"
TOKENIZER_FOLDER = "tokenizer/"
IMAGE_PROCESSOR_FILE = "image_processor/preprocessor_config.json"
WEIGHTS_FOLDER = "model_weights/"
WEIGHTS_INDEX = f"{WEIGHTS_FOLDER}model.safetensors.index.json"


def is_nemo(source: str | Path | None) -> bool:
    """Whether `source` is a file called `*.nemo`, or the folder that one was extracted to."""
    if not source:
        return False
    path = Path(source)
    return (path.suffix == ".nemo" and path.is_file()) or (path / CONFIG_FILE).is_file()


def is_nemo1(source: str | Path) -> bool:
    """Whether `source` is a `.nemo`, or the folder of an extracted one, that NeMo 1 wrote."""
    if not is_nemo(source):
        return False
    path = Path(source)
    if path.is_dir():
        return not (path / MANIFEST_FILE).is_file()
    members = members_of(path)
    return CONFIG_FILE in members and MANIFEST_FILE not in members


def nemo_config(source: str | Path | None) -> dict[str, Any] | None:
    """Returns `model_config.yaml` of a `.nemo` or of the folder it was extracted to; None for anything else.

    Raises:
        ConfigError: there is no such member, or it refers to what it does not hold.
    """
    if not is_nemo(source):
        return None
    found = _members(Path(str(source)), CONFIG_FILE)
    if CONFIG_FILE not in found:
        raise ConfigError(f"{source} holds no {CONFIG_FILE}: it is not a .nemo of a model")
    try:
        plain = OmegaConf.to_container(parse_config(found[CONFIG_FILE], source), resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(
            f"{CONFIG_FILE} of {source} is not complete in itself ({reason(error)}): a file of NeMo 1 "
            "becomes one of neva by `neva convert OLD.nemo NEW.nemo`"
        ) from error
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def parse_config(content: bytes, source: str | Path | None) -> DictConfig:
    """Returns the content of the `model_config.yaml` of `source`, its interpolations as they are written.

    Raises:
        CheckpointError: it is no YAML, or no mapping.
    """
    name = f"{CONFIG_FILE} of {source}"
    try:
        config = OmegaConf.create(decode_text(content, name))
    except (YAMLError, OmegaConfBaseException, ValueError, TypeError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise CheckpointError(f"{name} is not valid YAML ({reason(error)}): fetch the file again") from error
    if not isinstance(config, DictConfig):
        raise CheckpointError(f"{name} is not a mapping of keys to values: fetch the file again")
    return config


def nemo_manifest(source: str | Path | None) -> bytes | None:
    """Returns `manifest.json` of a `.nemo` or of its extracted folder; None for anything else, and for NeMo 1's."""
    return _members(Path(str(source)), MANIFEST_FILE).get(MANIFEST_FILE) if is_nemo(source) else None


def nemo_tokenizer(source: str | Path | None) -> dict[str, bytes] | None:
    """Returns the tokenizer's files of a `.nemo` or of its extracted folder, by name; None for anything else."""
    if not is_nemo(source):
        return None
    found = _members(Path(str(source)), TOKENIZER_FOLDER)
    return {name.removeprefix(TOKENIZER_FOLDER): content for name, content in found.items()}


def nemo_members(path: str | Path) -> dict[str, ByteRange]:
    """Returns where each member of a `.nemo`, or of the folder of an extracted one, lies.

    Raises:
        CheckpointError: nothing is there, or it is not one of neva, or is incomplete.
    """
    if not Path(path).exists():
        raise CheckpointError(
            f"{path} does not exist; expected a .nemo file or the folder of an extracted one"
        )
    members = members_of(Path(path))
    for required in (CONFIG_FILE, MANIFEST_FILE):
        if required not in members:
            raise CheckpointError(
                f"{path} has no {required}; it is incomplete or was not written by neva (a file of NeMo 1 is read by "
                "`neva convert OLD.nemo NEW.nemo`)"
            )
    return members


def tensor_names(path: str | Path) -> list[str]:
    """Returns the native names of the tensors that a `.nemo` holds.

    Raises:
        CheckpointError: it is not one of neva, or is incomplete.
    """
    members = nemo_members(path)
    if WEIGHTS_INDEX not in members:
        raise CheckpointError(f"{path} has no {WEIGHTS_INDEX}; it is incomplete")
    name = f"{WEIGHTS_INDEX} of {path}"
    return list(weight_map(parse_object(read_range(members[WEIGHTS_INDEX]), name), name))


def _members(path: Path, prefix: str) -> dict[str, bytes]:
    """Returns the content of the members whose names start with `prefix`."""
    try:
        places = members_of(path)
    except CheckpointError as error:
        raise ConfigError(str(error)) from error
    return {name: read_range(place) for name, place in places.items() if name.startswith(prefix)}
