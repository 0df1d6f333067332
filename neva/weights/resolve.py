"""Where the weights of each part of a model come from: one rule for training, inference, conversion and the dry run.

A `.nemo` that holds a part comes first: `model.restore_from_path`, then, for the projector,
`model.mm_cfg.pretrain_mm_mlp_adapter`, for adapters and projector `model.peft.restore_from_path`. A part that none
holds comes from the folder or `.nemo` that its `from_pretrained` names, and without one it starts from random weights.

A run with adapters saves what it trains. The `.nemo` that it started from stays the base of its own, as a folder does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from neva.config.peft import has_adapters
from neva.config.tower import SECOND_ENCODER
from neva.constants import (
    ADAPTERS,
    ALL_PARTS,
    LANGUAGE_MODEL,
    PARTS,
    PROJECTOR,
    SECOND_TOWER,
    VISION_TOWER,
    part_of,
)
from neva.errors import CheckpointError
from neva.families.connector import connector_named
from neva.formats.nemo_header import is_nemo, tensor_names

SCRATCH, NO_TENSORS = "scratch", "nowhere, as it has no tensors"

SECTION_OF = {LANGUAGE_MODEL: "llm", VISION_TOWER: "vision_encoder", SECOND_TOWER: SECOND_ENCODER}
"""Part -> section of `model.mm_cfg` whose `from_pretrained` names a folder with its weights."""

WEIGHT_KEYS = (
    *(f"model.mm_cfg.{section}.from_pretrained" for section in SECTION_OF.values()),
    "model.mm_cfg.pretrain_mm_mlp_adapter",
    "model.restore_from_path",
    "model.peft.restore_from_path",
)
"""Keys of a training recipe that name weights."""


@dataclass(frozen=True)
class Origin:
    """Where the weights of one part come from.

    Attributes:
        path: file or folder; None: random weights.
        is_held: `path` is the `.nemo` that holds the part, not a folder that is named for it; a part without tensors
            is held by whatever holds the model, and has no path.
        is_base: it is read again wherever the adapters of this run are.
        fingerprint: of what was read there, beside adapters.
    """

    path: str | None
    is_held: bool
    is_base: bool = False
    fingerprint: str | None = None

    @property
    def is_nowhere(self) -> bool:
        """Whether neither a file nor a folder has the part."""
        return self.path is None and not self.is_held

    @property
    def embedded(self) -> bool:
        """Whether the weights cannot be read again from where they came: a run has to save them."""
        return self.path is None or (self.is_held and not self.is_base)

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
    started_from = model_cfg.restore_from_path
    if started_from is not None and not has_adapters(model_cfg):
        _refuse_adapters(started_from)
    for path, parts in (
        (model_cfg.mm_cfg.pretrain_mm_mlp_adapter, (PROJECTOR,)),
        (started_from, ALL_PARTS),
        (OmegaConf.select(model_cfg, "peft.restore_from_path"), (PROJECTOR, ADAPTERS)),
    ):
        if path is not None:
            held |= dict.fromkeys(_held_parts(path, parts, _without_tensors(model_cfg.mm_cfg)), str(path))
    return origins(held, model_cfg)


def resolve_nemo(
    path: str | Path, model_cfg: DictConfig, overrides: Mapping[str, str | Path | None] | None = None
) -> dict[str, Origin]:
    """Returns the origin of each part of a model in a `.nemo`.

    Args:
        path: the file, or the folder of an extracted one.
        model_cfg: the section that it records.
        overrides: part -> where it is, if the `.nemo` does not hold it; None: where its configuration says.
    """
    return origins(dict.fromkeys(parts_among(tensor_names(path)), str(path)), model_cfg, overrides)


def origins(
    held: Mapping[str, str],
    model_cfg: DictConfig,
    overrides: Mapping[str, str | Path | None] | None = None,
) -> dict[str, Origin]:
    """Returns the origin of each part: the file in `held`, else what is named for it."""
    has_base = has_adapters(model_cfg) and model_cfg.restore_from_path is not None
    base = str(model_cfg.restore_from_path) if has_base else None
    empty = _without_tensors(model_cfg.mm_cfg)
    found = {}
    for part in _parts_of(model_cfg):
        if part in held or part in empty:
            is_base = base is not None and held.get(part) == base and part in SECTION_OF
            found[part] = Origin(held.get(part), is_held=True, is_base=is_base)
        elif (overrides or {}).get(part) is None and part in SECTION_OF and _holds(base, part):
            found[part] = Origin(base, is_held=True, is_base=True)
        else:
            found[part] = Origin(named_folder(model_cfg.mm_cfg, part, overrides), is_held=False)
    return found


def _parts_of(model_cfg: DictConfig) -> list[str]:
    """Returns the parts that a model has."""
    absent = {SECOND_TOWER} if model_cfg.mm_cfg.get(SECOND_ENCODER) is None else set()
    return [part for part in (ALL_PARTS if has_adapters(model_cfg) else PARTS) if part not in absent]


def _holds(path: str | None, part: str) -> bool:
    return path is not None and is_nemo(path) and part in parts_among(tensor_names(path))


def _refuse_adapters(path: str) -> None:
    if is_nemo(path) and ADAPTERS in parts_among(tensor_names(path)):
        raise CheckpointError(
            f"{path} holds adapters, which this run would leave out: set model.peft.peft_scheme=lora, or merge them "
            "with `neva convert --merge`"
        )


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
    found = {part_of(name) for name in names}
    return [part for part in ALL_PARTS if part in found]


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
