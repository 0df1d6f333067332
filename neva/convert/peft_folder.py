"""Adapters as Hugging Face's `peft` stores them: its configuration, and names of their tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from neva.config.keys.peft import BEFORE_FACTORS, CANONICAL, DORA, LORA
from neva.constants import ADAPTER
from neva.errors import CheckpointError
from neva.families.adapters import DOWN, GATE_UP, INPUT, MAGNITUDE, OUTPUT, PROJECTION, QKV, WHOLE
from neva.families.configs import LanguageConfig, LoraConfig
from neva.families.naming import LANGUAGE, LLAVA_HF
from neva.formats.hf_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from neva.formats.json import read_object
from neva.weights.merged import by_piece, factors_of

MODULES = {
    (QKV, "q"): "self_attn.q_proj",
    (QKV, "k"): "self_attn.k_proj",
    (QKV, "v"): "self_attn.v_proj",
    (PROJECTION, WHOLE): "self_attn.o_proj",
    (GATE_UP, "gate"): "mlp.gate_proj",
    (GATE_UP, "up"): "mlp.up_proj",
    (DOWN, WHOLE): "mlp.down_proj",
}
"""Matrix and piece -> module of a layer in transformers."""

BODY = "base_model.model.model."
"""Stands before the names that transformers' LLaVA has in memory."""

PROJECTOR_MODULE = LLAVA_HF.projector.removesuffix(".")
KINDS = {INPUT: "lora_A.weight", OUTPUT: "lora_B.weight", MAGNITUDE: "lora_magnitude_vector"}
"""What a factor is called behind its module."""

FACTOR = re.compile(
    r"base_model\.model\.(?:model\.language_model|language_model\.model)\.layers\.(\d+)\.(.+)\."
    r"(lora_A\.weight|lora_B\.weight|lora_magnitude_vector)"
)
"""transformers before 4.52 had the second of the two prefixes."""

OFF: dict[str, tuple[Any, ...]] = {
    "use_rslora": (False, None),
    "bias": ("none", None),
    "lora_bias": (False, None),
    "fan_in_fan_out": (False, None),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
}
"""Settings of peft's LoRA that change its numbers -> the values that leave them as they are."""


def peft_config(lora: LoraConfig, num_layers: int, base: str) -> dict[str, Any]:
    """Returns the content of `adapter_config.json`."""
    modules = [MODULES[site, piece] for site, pieces in lora.sites for piece in _told_apart(site, pieces)]
    layers = range(num_layers) if lora.layers is None else lora.layers
    numbers = r"\d+" if lora.layers is None else f"({'|'.join(str(layer) for layer in layers)})"
    names = "|".join(re.escape(module) for module in modules)
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout if lora.drops_input else 0.0,
        "target_modules": rf".*language_model\.layers\.{numbers}\.({names})",
        "modules_to_save": [PROJECTOR_MODULE],
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "use_dora": lora.has_magnitudes,
        "use_rslora": False,
    }


def _told_apart(site: str, pieces: tuple[str, ...]) -> list[str]:
    known = [piece for of_site, piece in MODULES if of_site == site]
    return known if pieces == (WHOLE,) else list(pieces)


def to_peft(language: LanguageConfig, adapters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the factors under peft's names; joined pieces get a copy each of their common A."""
    found = {}
    for matrix, factors in factors_of(language, adapters).items():
        layer, site = matrix.split(".")[3], ".".join(matrix.split(".")[-2:])
        for piece, of_piece in by_piece(language, site, factors).items():
            module = f"{BODY}{LLAVA_HF.language}layers.{layer}.{MODULES[site, piece]}"
            for kind, name in KINDS.items():
                if (factor := getattr(of_piece, kind)) is not None:
                    found[f"{module}.{name}"] = factor.clone().contiguous()
    return found


def from_peft(tensors: Mapping[str, Tensor], where: Path) -> dict[str, Tensor]:
    """Returns the factors among the tensors of a peft folder under native names.

    Raises:
        CheckpointError: there is something else among them than factors of a language model and a projector.
    """
    places = {module: place for place, module in MODULES.items()}
    found = {}
    for name, tensor in tensors.items():
        if name.startswith(BODY + LLAVA_HF.projector):
            continue
        match = FACTOR.fullmatch(name)
        if match is None or match[2] not in places:
            raise CheckpointError(
                f"{where / ADAPTER_WEIGHTS} holds {name}; expected factors beside the matrices of a LLaVA's "
                "language model, and its projector"
            )
        site, piece = places[match[2]]
        kind = next(kind for kind, name in KINDS.items() if name == match[3])
        found[f"{LANGUAGE}decoder.layers.{match[1]}.{site}{ADAPTER}{piece}.{kind}"] = tensor
    return found


def peft_section(folder: Path, adapters: Mapping[str, Tensor], num_layers: int) -> dict[str, Any]:
    """Returns `model.peft` of the adapters in a peft folder.

    Args:
        folder: has the configuration.
        adapters: the factors under native names.
        num_layers: of the language model.

    Raises:
        CheckpointError: it is configured otherwise than neva can compute.
    """
    config = read_object(folder / ADAPTER_CONFIG, CheckpointError)
    if config.get("peft_type") != "LORA":
        raise CheckpointError(
            f"{folder / ADAPTER_CONFIG} says peft_type {config.get('peft_type')!r}, expected 'LORA'"
        )
    for key, values in OFF.items():
        if config.get(key) not in values:
            raise CheckpointError(
                f"{folder / ADAPTER_CONFIG} says {key} {config[key]!r}, expected {values[0]!r}"
            )
    if others := [name for name in config.get("modules_to_save") or [] if name != PROJECTOR_MODULE]:
        raise CheckpointError(
            f"{folder / ADAPTER_CONFIG} saves the module {others[0]} as a whole, expected none but {PROJECTOR_MODULE}"
        )
    places = {tuple(name.split(".decoder.layers.")[1].split(".", 1)) for name in adapters}
    layers = sorted({int(layer) for layer, _ in places})
    kinds = [{rest for layer, rest in places if int(layer) == number} for number in layers]
    if not layers or any(kind != kinds[0] for kind in kinds):
        raise CheckpointError(
            f"{folder / ADAPTER_WEIGHTS} has other matrices in some layers, expected the same"
        )
    named = {MODULES[_place(rest)].rpartition(".")[2] for rest in kinds[0]}
    return {
        "peft_scheme": DORA if config.get("use_dora") else LORA,
        "restore_from_path": None,
        "lora_tuning": {
            "variant": CANONICAL,
            "target_modules": [
                m.rpartition(".")[2] for m in MODULES.values() if m.rpartition(".")[2] in named
            ],
            "adapter_dim": int(config["r"]),
            "alpha": float(config["lora_alpha"]),
            "adapter_dropout": float(config.get("lora_dropout") or 0.0),
            "dropout_position": BEFORE_FACTORS,
            "column_init_method": "kaiming",
            "row_init_method": "zero",
            "layer_selection": None if len(layers) == num_layers else [number + 1 for number in layers],
        },
    }


def _place(rest: str) -> tuple[str, str]:
    """Returns matrix and piece of a factor's name behind the number of its layer."""
    site, _, factor = rest.partition(ADAPTER)
    return site, factor.split(".")[0]
