"""What a user may decide about a conversion."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


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
        adapter_type, select_layer, conv_template, seed: of a new model with a fresh projector.
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
    conv_template: str = "v1"
    seed: int = 1234
    add_tokens: tuple[str, ...] = ()
    vocab_multiple: int = 1
    merge: bool = False
