"""Under which names the parts of a model are stored: here, and in each layout of Hugging Face folders.

Sources: transformers `models/llava`, the hub's llava-hf folders, and https://github.com/haotian-liu/LLaVA.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

LANGUAGE, TOWER, PROJECTOR = "language_model.", "vision_tower.model.", "projector."
"""Prefixes of the native names."""

SECOND = "second_vision_tower.model."
"""That of a second tower's."""

VISION_MODEL = "vision_model."
"""The module around the towers of CLIP and SigLIP in transformers 4, whose names the stored files keep."""


@dataclass(frozen=True)
class HFNaming:
    """Prefixes of the parts in a Hugging Face folder; a layout without tower and projector leaves theirs empty."""

    model_type: str | None = None
    """Of the one model of transformers that has these names; None: several have."""
    language: str = ""
    tower: str = ""
    projector: str = ""
    connector: str | None = None
    """The one kind of projector that the layout holds; None: any, under its own names."""
    linear_layers: tuple[str, ...] = ()
    """What the layers of that one are called."""
    in_files: tuple[tuple[str, str], ...] = ()
    """Prefixes of these names, and what stands for each in the folder's files; none: the names are the files'."""
    newline: str | None = None
    """Name of the newline behind the rows of an image's tiles, which stands beside the projector; None: no place."""

    def file_name(self, name: str) -> str:
        """Returns the name of a tensor in the folder's files."""
        for prefix, stored in self.in_files:
            if name.startswith(prefix):
                return stored + name.removeprefix(prefix)
        return name

    def own_name(self, stored: str) -> str:
        """Returns the name here of a tensor in the folder's files."""
        for prefix, of_file in self.in_files:
            if stored.startswith(of_file):
                return prefix + stored.removeprefix(of_file)
        return stored


TEXT = HFNaming()
"""A language model alone: `LlamaForCausalLM` and its relatives."""

LLAVA_HF = HFNaming(
    model_type="llava",
    language="language_model.",
    tower="vision_tower.",
    projector="multi_modal_projector.",
    connector="mlp2x_gelu",
    linear_layers=("linear_1", "linear_2"),
)
"""The hub's llava-hf names, which transformers 4.45 to 5.x all load."""

LLAVA_NEXT = replace(
    LLAVA_HF, model_type="llava_next", connector=f"{LLAVA_HF.connector}_newline", newline="image_newline"
)
"""The same, of models with tiles."""

LLAVA_TYPES = (LLAVA_HF.model_type, LLAVA_NEXT.model_type)
"""`model_type` of transformers' LLaVA models."""

IDEFICS2 = replace(
    LLAVA_HF,
    model_type="idefics2",
    connector=None,
    linear_layers=(),
    in_files=(
        ("language_model.model.", "model.text_model."),
        ("language_model.lm_head.", "lm_head."),
        ("vision_tower.", "model.vision_model."),
        ("multi_modal_projector.", "model.connector."),
    ),
)
"""Idefics2: LLaVA's names in its tables, other ones in its files."""

LLAVA_ORIGINAL = HFNaming(tower="model.vision_tower.vision_tower.", projector="model.mm_projector.")
"""The names of haotian-liu/LLaVA."""


def tower_prefix(names: Iterable[str], first: str) -> str:
    """Returns the prefix under which a Hugging Face folder stores its vision tower, one of whose tensors is `first`.

    CLIPModel and towers of transformers 4 have one, those of transformers 5 have none; towers below a head, such as
    `ViTForImageClassification`, have another one.
    """
    parents = (LLAVA_HF.tower, LLAVA_ORIGINAL.tower)
    wrapped = tuple(parent + VISION_MODEL for parent in parents)
    known = (*wrapped, LLAVA_HF.tower, "model.vision_tower.", VISION_MODEL)
    names = list(names)
    if found := next((prefix for prefix in known if any(name.startswith(prefix) for name in names)), ""):
        return found
    return next((name.removesuffix(first) for name in names if name.endswith(f".{first}")), "")
