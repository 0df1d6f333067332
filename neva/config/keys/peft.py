"""`model.peft.*`: adapters beside frozen weights, under NeMo's names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from neva.config.keys.field import MODEL, TRAINED, ignored, key, refused, section

LORA, QLORA, DORA, NO_PEFT = "lora", "qlora", "dora", "none"
SCHEMES = (LORA, QLORA, DORA)
"""Those that have adapters."""

NF4, INT8 = "nf4", "int8"
NEMO_VARIANT, CANONICAL = "nemo", "canonical"
BEFORE_FACTORS, AFTER_FACTORS = "pre", "post"

_OTHER_SCHEME = "neva trains LoRA adapters (lora, qlora, dora) and none other"
_OTHER_SCHEMES = ("adapter", "ia3", "ptuning", "selective", "sdlora")
_OTHER_DETAIL = "acts with another model.peft.peft_scheme only, which is refused"

NEMO_TARGETS = ("attention_qkv", "attention_dense", "mlp_fc1", "mlp_fc2", "attention", "mlp", "all")
HF_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
INITS = ("xavier", "normal", "kaiming", "zero")


@dataclass
class LoraTuning:
    """LoRA."""

    variant: str = key(
        "nemo: one pair of factors for the joined queries, keys and values, and for gate and up; canonical: a pair for "
        "each, as in peft.",
        choices=(NEMO_VARIANT, CANONICAL),
        fixed=MODEL,
    )
    target_modules: list[str] = key(
        "Matrices with adapters, by NeMo's names or those of Hugging Face.",
        choices=(*NEMO_TARGETS, *HF_TARGETS),
        fixed=MODEL,
    )
    vision_target_modules: list[str] | None = key(
        "Matrices of the vision tower's layers with adapters, by the last word of their names in Hugging Face (q_proj, "
        "fc1); all: every one; null: none.",
        fixed=MODEL,
    )
    adapter_dim: int = key("Rank of the factors.", low=1, common=True, fixed=MODEL)
    alpha: float | None = key(
        "Their product is multiplied by alpha / adapter_dim; null: adapter_dim.", above=0, fixed=MODEL
    )
    adapter_dropout: float = key("Share of elements that dropout sets to zero.", low=0, below=1)
    dropout_position: str = key(
        "pre: of the input, as in peft; post: of what the factors add.",
        choices=(BEFORE_FACTORS, AFTER_FACTORS),
    )
    column_init_method: str = key("How the first factor is drawn.", choices=INITS)
    row_init_method: str = key("How the second factor is drawn.", choices=INITS)
    layer_selection: list[int] | None = key(
        "Layers with adapters, counted from 1; null: all.", low=1, fixed=MODEL
    )

    weight_tying: Any = refused(False, None, why="every layer has factors of its own")
    position_embedding_strategy: Any = refused(None, why="it acts with tied adapters only")
    a2a_experimental: Any = ignored("how ranks exchange what the factors need changes time only")


@dataclass
class Peft:
    """Adapters."""

    peft_scheme: str | None = key(
        "lora: adapters beside the frozen language model train; qlora: and its matrices are packed; dora: and the "
        "lengths of rows are learnt apart; none, null: there are none.",
        choices=(*SCHEMES, NO_PEFT),
        fixed=TRAINED,
        not_yet=dict.fromkeys(_OTHER_SCHEMES, _OTHER_SCHEME),
        common=True,
    )
    restore_from_path: str | None = key("A .nemo whose adapters (and projector) the run starts from.")
    quantization: str = key("With qlora, how matrices are packed.", choices=(NF4, INT8), fixed=MODEL)
    lora_tuning: LoraTuning = section()

    adapter_tuning: Any = ignored(_OTHER_DETAIL)
    p_tuning: Any = ignored(_OTHER_DETAIL)
    ia3_tuning: Any = ignored(_OTHER_DETAIL)
    selective_tuning: Any = ignored(_OTHER_DETAIL)
