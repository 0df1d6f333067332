"""Where the weights of each part of a model come from: one rule for training, inference, conversion and the dry run.

A `.nemo` that holds a part comes first: `model.restore_from_path`, then, for the projector,
`model.mm_cfg.pretrain_mm_mlp_adapter`. A part that none holds comes from the folder or `.nemo` that its
`from_pretrained` names, and without one it starts from random weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from neva.config.model_config import SECOND_ENCODER
from neva.constants import LANGUAGE_MODEL, PARTS, PROJECTOR, SECOND_TOWER, VISION_TOWER
from neva.errors import CheckpointError
from neva.families.connector import connector_named
from neva.formats.nemo_header import tensor_names

SCRATCH, NO_TENSORS = "scratch", "nowhere, as it has no tensors"

SECTION_OF = {LANGUAGE_MODEL: "llm", VISION_TOWER: "vision_encoder", SECOND_TOWER: SECOND_ENCODER}
"""Part -> section of `model.mm_cfg` whose `from_pretrained` names a folder with its weights."""

WEIGHT_KEYS = (
    *(f"model.mm_cfg.{section}.from_pretrained" for section in SECTION_OF.values()),
    "model.mm_cfg.pretrain_mm_mlp_adapter",
    "model.restore_from_path",
)
"""Keys of a training recipe that name weights."""


@dataclass(frozen=True)
class Origin:
    """Where the weights of one part come from.

    Attributes:
        path: file or folder; None: random weights.
        is_held: `path` is the `.nemo` that holds the part, not a folder that is named for it; a part without tensors
            is held by whatever holds the model, and has no path.
    """

    path: str | None
    is_held: bool

    @property
    def is_nowhere(self) -> bool:
        """Whether neither a file nor a folder has the part."""
        return self.path is None and not self.is_held

    @property
    def embedded(self) -> bool:
        """Whether the weights cannot be read again from a folder of their own: a run has to save them."""
        return self.is_held or self.path is None

    def __str__(self) -> str:
        if self.path is None:
            return NO_TENSORS if self.is_held else SCRATCH
        return self.path


def resolve_weights(model_cfg: DictConfig) -> dict[str, Origin]:
    """Returns the origin of each part's first weights in training.

    Args:
        model_cfg: the resolved `model` section.

    Raises:
        CheckpointError: a `.nemo` holds none of the parts that are to come from it.
    """
    held: dict[str, str] = {}
    for path, parts in (
        (model_cfg.mm_cfg.pretrain_mm_mlp_adapter, (PROJECTOR,)),
        (model_cfg.restore_from_path, PARTS),
    ):
        if path is not None:
            held |= dict.fromkeys(_held_parts(path, parts, _without_tensors(model_cfg.mm_cfg)), str(path))
    return origins(held, model_cfg.mm_cfg)


def resolve_nemo(
    path: str | Path, mm_cfg: DictConfig, overrides: Mapping[str, str | Path | None] | None = None
) -> dict[str, Origin]:
    """Returns the origin of each part of a model in a `.nemo`.

    Args:
        path: the file, or the folder of an extracted one.
        mm_cfg: the `mm_cfg` section of its configuration.
        overrides: part -> where it is, if the `.nemo` does not hold it; None: where its configuration says.
    """
    return origins(dict.fromkeys(parts_among(tensor_names(path)), str(path)), mm_cfg, overrides)


def origins(
    held: Mapping[str, str], mm_cfg: DictConfig, overrides: Mapping[str, str | Path | None] | None = None
) -> dict[str, Origin]:
    """Returns the origin of each part: the file in `held`, else the folder that is named for it."""
    empty = _without_tensors(mm_cfg)
    return {
        part: Origin(held.get(part), is_held=True)
        if part in held or part in empty
        else Origin(named_folder(mm_cfg, part, overrides), is_held=False)
        for part in PARTS
        if part != SECOND_TOWER or mm_cfg.get(SECOND_ENCODER) is not None
    }


def named_folder(
    mm_cfg: DictConfig, part: str, overrides: Mapping[str, str | Path | None] | None = None
) -> str | None:
    """Returns the folder that `overrides` or `from_pretrained` name for a part; None: neither does."""
    folder = (overrides or {}).get(part)
    if folder is None and part in SECTION_OF:
        folder = mm_cfg[SECTION_OF[part]].from_pretrained
    return None if folder is None else str(folder)


def parts_among(names: Iterable[str]) -> list[str]:
    """Returns the parts to which tensors of these native names belong."""
    prefixes = {name.split(".", 1)[0] for name in names}
    return [part for part in PARTS if part in prefixes]


def _without_tensors(mm_cfg: DictConfig) -> frozenset[str]:
    """Returns the parts of a model that have no tensors, which no file holds."""
    return frozenset() if connector_named(mm_cfg.mm_mlp_adapter_type).has_tensors else frozenset({PROJECTOR})


def _held_parts(path: str, parts: tuple[str, ...], empty: frozenset[str]) -> list[str]:
    held = [part for part in parts_among(tensor_names(path)) if part in parts]
    if not held and not empty.issuperset(parts):
        raise CheckpointError(
            f"{path} holds none of {', '.join(parts)}; expected a .nemo of neva with at least one of them"
        )
    return held
