"""The table of a vision tower, and under which prefix a folder stores it."""

from __future__ import annotations

import re
from collections.abc import Mapping

from neva.families.configs import VisionConfig
from neva.families.mapping import Rename, Shape, Table
from neva.families.naming import TOWER, HFNaming
from neva.families.vision import vision_family

POSITION_BUFFERS = r".*\.position_ids"
OTHER_HEADS = r"text_model\..*|(visual|text)_projection\.weight|logit_(scale|bias)|classifier\..*"
"""Patterns of tensors that a folder may hold beside a tower: buffers, and what CLIP and SigLIP compare texts with or
classify by."""

POOLING = "head."
"""Prefix of SigLIP's attention pooling, which no hidden state depends on."""


def tower_shapes(vision: VisionConfig, pooling_head: bool) -> dict[str, Shape]:
    """Returns names and shapes of a tower in transformers 5.23's memory (no prefix), in the order of an export.

    `pooling_head` says whether a SigLIP tower has its attention pooling (`vision_use_head`).
    """
    return vision_family(vision.model_type).tensor_shapes(vision, pooling_head)


def stored_tower(vision: VisionConfig, naming: HFNaming) -> str:
    """Returns the prefix of a tower's tensors in a folder."""
    return naming.tower + vision_family(vision.model_type).wrapper


def tower_table(
    shapes: Mapping[str, Shape],
    hf_prefix: str,
    file_names: Mapping[str, str] | None = None,
    native_prefix: str = TOWER,
) -> Table:
    """Returns the table of a tower of these names and shapes that is stored under `hf_prefix`.

    `file_names` are those that differ in a file.
    """
    stored = file_names or {}
    rules = tuple(
        Rename(hf_prefix + stored.get(name, name), native_prefix + name, shape)
        for name, shape in shapes.items()
    )
    ignored: tuple[str, ...] = (POSITION_BUFFERS, OTHER_HEADS)
    if not any(name.startswith(POOLING) for name in shapes):
        ignored += (rf".*\b{re.escape(POOLING)}.*",)
    return Table(rules, ignored)
