"""Tiny models of transformers, one a family that is not LLaMA's make, of odd sizes and random weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from neva.families.configs import LanguageConfig
from neva.families.language import language_config_from_hf, language_table
from neva.model.decoder_spec import transformer_config
from neva.model.language import LanguageModel

VOCAB = 101
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 72,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
    "attn_implementation": "eager",
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0, 1.1],
    "long_factor": [2.0, 3.5],
    "original_max_position_embeddings": 16,
}
GEMMA = {"head_dim": 12, "sliding_window": 5, "query_pre_attn_scalar": 20}
RELATIVES: dict[str, tuple[str, dict[str, Any]]] = {
    "stablelm": ("stablelm", {"use_qkv_bias": True, "rope_parameters": {"rope_theta": 5e3}}),
    "phi3": ("phi3", {"sliding_window": 7}),
    "phi3_longrope": (
        "phi3",
        {
            "original_max_position_embeddings": 16,
            "rope_parameters": {**LONGROPE, "partial_rotary_factor": 0.5},
        },
    ),
    "olmo2": ("olmo2", {"rope_parameters": {"rope_theta": 5e3}}),
    "gemma2": (
        "gemma2",
        {**GEMMA, "attn_logit_softcapping": 0.9, "final_logit_softcapping": 3.0},
    ),
    "gemma3": (
        "gemma3_text",
        {
            **GEMMA,
            "num_hidden_layers": 7,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 7e4},
                "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
            },
        },
    ),
    "yarn": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e4,
                "factor": 4.0,
                "original_max_position_embeddings": 16,
                "beta_fast": 3.0,
                "truncate": False,
            }
        },
    ),
    "dynamic": (
        "qwen3",
        {
            "head_dim": 8,
            "max_position_embeddings": 16,
            "rope_parameters": {"rope_type": "dynamic", "factor": 3.0, "rope_theta": 1e4},
        },
    ),
}
"""Name -> model type and what differs from SIZES. RoPE of longrope, yarn and dynamic was made for 16 positions."""


def theirs(name: str, **changes: Any) -> PreTrainedModel:
    """Transformers' model; norms and biases away from ones and zeros, so that a lost one shows."""
    model_type, own = RELATIVES[name]
    config = AutoConfig.for_model(model_type, **{**SIZES, **own, **changes})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.normal_(0, 0.25 if "norm" in key else 0.2)
            if "norm" in key and key.endswith("weight") and "gemma" not in name:
                parameter.add_(1)
    return model


def ours(model: PreTrainedModel, dtype: torch.dtype = torch.float32) -> tuple[LanguageModel, LanguageConfig]:
    """Megatron's with the same weights, through the family's table."""
    language = language_config_from_hf(model.config.to_dict())
    built = LanguageModel(transformer_config(language, params_dtype=dtype), language, True, True).eval()
    native = dict(language_table(language).to_native(hf_tensors(model)))
    prefix = "language_model."
    missing, unexpected = built.load_state_dict(
        {name.removeprefix(prefix): tensor for name, tensor in native.items()}, strict=False
    )
    assert not unexpected and all(name.endswith("_extra_state") for name in missing), (missing, unexpected)
    return built, language


def hf_tensors(model: PreTrainedModel) -> dict[str, Tensor]:
    """The tensors that transformers would write."""
    tensors = dict(model.state_dict())
    if model.config.tie_word_embeddings:
        tensors.pop("lm_head.weight")
    return tensors


def ids(length: int, rows: int = 2) -> Tensor:
    return torch.randint(3, VOCAB, (rows, length), generator=torch.Generator().manual_seed(5))


class _Doubles(TorchFunctionMode):
    """Where a function asks for float32, it gets float64."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def double(value: Any) -> Any:
            return torch.float64 if value is torch.float32 else value

        kwargs = {key: double(value) for key, value in (kwargs or {}).items()}
        if func is Tensor.float:
            return args[0].double()
        return func(*map(double, args), **kwargs)


@contextmanager
def in_float64() -> Iterator[None]:
    """Both models compute norms, softmax and angles in float64, which they otherwise take to float32."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Doubles():
            yield
    finally:
        torch.set_default_dtype(default)
