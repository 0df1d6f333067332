"""What a user may decide about a conversion."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

USUAL_TEMPLATE = "v1"
"""Conversation template of a model whose source tells none: LLaVA-1.5's."""


@dataclass(frozen=True)
class Options:
    """The flags of `neva convert`; None leaves the decision to what is found.

    Attributes:
        dtype: of the weights.
        layout: of a LLaVA folder, a name in `targets.LAYOUTS`.
        overwrite: replace the target when it is complete.
        verify: prove an export.
        llm_path: the language model that a `.nemo` refers to.
        tower_path: the tower that the source refers to, or the one to add.
        tower_name: what `mm_vision_tower` shall say in the original layout.
        tokenizer_path: folder of another tokenizer.
        adapter_type, select_layer, seed: of a new model with a fresh projector.
        conv_template: what a model is recorded with that is none of neva's training; None: what the source tells.
        add_tokens: special tokens to add to a language model.
        merge: adapters are merged into the language model.
        vocab_multiple: a llava-hf folder's vocabulary has a multiple of this number of rows.
    """

    dtype: torch.dtype | None = None
    layout: str = "llava-hf"
    overwrite: bool = False
    verify: bool = True
    llm_path: Path | None = None
    tower_path: Path | None = None
    tower_name: str | None = None
    tokenizer_path: Path | None = None
    adapter_type: str = "mlp2x_gelu"
    select_layer: int | tuple[int, ...] = -2
    conv_template: str | None = None
    seed: int = 1234
    add_tokens: tuple[str, ...] = ()
    vocab_multiple: int = 1
    merge: bool = False
