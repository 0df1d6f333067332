"""What is read from a `.nemo`, or the folder it was extracted to, before any weight: configuration and tokenizer."""

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from neva.errors import ConfigError
from neva.formats.archive import members_of, read_range

CONFIG_FILE = "model_config.yaml"
TOKENIZER_FOLDER = "tokenizer/"


def nemo_config(source: str | None) -> dict[str, Any] | None:
    """`model_config.yaml` of a `.nemo` or of the folder it was extracted to; None for anything else."""
    if not _is_nemo(source):
        return None
    found = _members(Path(str(source)), CONFIG_FILE)
    if CONFIG_FILE not in found:
        raise ConfigError(f"{source} holds no {CONFIG_FILE}: it is not a .nemo of a model")
    try:
        plain = OmegaConf.to_container(OmegaConf.create(found[CONFIG_FILE].decode()), resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(
            f"{CONFIG_FILE} of {source} is not complete in itself ({' '.join(str(error).split())}): a file of NeMo 1 "
            "becomes one of neva by `neva convert OLD.nemo NEW.nemo`"
        ) from error
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def nemo_tokenizer(source: str | None) -> dict[str, bytes] | None:
    """The tokenizer's files of a `.nemo` or of the folder it was extracted to, by name; None for anything else."""
    if not _is_nemo(source):
        return None
    found = _members(Path(str(source)), TOKENIZER_FOLDER)
    return {name.removeprefix(TOKENIZER_FOLDER): content for name, content in found.items()}


def _is_nemo(source: str | None) -> bool:
    path = Path(source or "")
    if path.suffix == ".nemo" and path.is_file():
        return True
    return bool(source) and (path / CONFIG_FILE).is_file()


def _members(path: Path, prefix: str) -> dict[str, bytes]:
    """Content of the members whose names start with `prefix`."""
    try:
        places = members_of(path)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return {name: read_range(place) for name, place in places.items() if name.startswith(prefix)}
