"""Adapters as Hugging Face's `peft` stores them: its configuration, and names of their tensors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from neva.config.keys.peft import BEFORE_FACTORS, CANONICAL, DORA, LORA
from neva.constants import ADAPTER
from neva.errors import CheckpointError
from neva.families.adapters import DOWN, GATE_UP, INPUT, MAGNITUDE, OUTPUT, PROJECTION, QKV, WHOLE
from neva.families.configs import LanguageConfig, VisionConfig
from neva.families.hugging_face import MODULE, adapted
from neva.families.mapping import ConversionError, Shape, expect_shape
from neva.families.naming import LANGUAGE, LLAVA_HF, TOWER, VISION_MODEL
from neva.families.tower_adapters import layer_matrices, tower_sites
from neva.families.values import number, whole
from neva.formats.hf_files import ADAPTER_CONFIG
from neva.formats.json import read_object, shown
from neva.weights.merged import by_piece, factors_of, with_factors

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
PROJECTORS = (BODY + LLAVA_HF.projector, f"base_model.model.{LLAVA_HF.projector}")
"""What the names of the projector's tensors begin with; in transformers before 4.52 with the second."""

KINDS = {INPUT: "lora_A.weight", OUTPUT: "lora_B.weight", MAGNITUDE: "lora_magnitude_vector"}
"""What a factor is called behind its module."""

_KIND = rf"({'|'.join(map(re.escape, KINDS.values()))})"
FACTOR = re.compile(
    r"base_model\.model\.(?:model\.language_model|language_model\.model|model)\.layers\.(\d+)\.(.+)\." + _KIND
)
"""transformers before 4.52 had the second of the prefixes, haotian-liu/LLaVA has the third."""

TOWER_FACTOR = re.compile(
    rf"base_model\.model\.(?:model\.)?vision_tower\.(?:{re.escape(VISION_MODEL)})?(.+)\." + _KIND
)

PLAIN_KEYS = (
    *("peft_type", "r", "lora_alpha", "use_rslora", "lora_dropout", "use_dora", "modules_to_save"),
    "init_lora_weights",
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "ensure_weight_tying"),
    *("task_type", "auto_mapping", "base_model_name_or_path", "revision", "peft_version", "inference_mode"),
    *("megatron_config", "megatron_core", "qalora_group_size"),
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config"),
)
"""Keys of peft's LoRA that are read here or leave the numbers of stored factors alone; of another one, whatever is not
off changes them."""

OFF: tuple[Any, ...] = (None, False, "none", {}, [])

PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")
"""How peft may have drawn the factors; in other ways it takes them out of the matrices, which are other ones then."""


def peft_config(language: LanguageConfig, vision: VisionConfig, base: str) -> dict[str, Any]:
    """Returns the content of `adapter_config.json`."""
    lora = language.lora
    assert lora is not None
    if language.hf_config is not None:
        modules = [
            _module(MODULE + name, "", WHOLE).removeprefix(LLAVA_HF.language) for name in adapted(language)
        ]
        numbers = ""
    else:
        modules = [MODULES[site, piece] for site, pieces in lora.sites for piece in _told_apart(site, pieces)]
        layer = r"\d+" if lora.layers is None else _one_of(map(str, lora.layers))
        numbers = rf"layers\.{layer}\."
    chosen = [rf"language_model\.{numbers}{_one_of(modules)}"] * bool(modules)
    if sites := tower_sites(vision):  # by name: peft knows of no layer that does not run
        chosen.append(rf"vision_tower\.{_one_of(sites)}")
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout if lora.drops_input else 0.0,
        "target_modules": rf".*({'|'.join(chosen)})",
        "modules_to_save": [PROJECTOR_MODULE],
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "use_dora": lora.has_magnitudes,
        "use_rslora": False,
    }


def _one_of(words: Iterable[str]) -> str:
    return f"({'|'.join(map(re.escape, words))})"


def _told_apart(site: str, pieces: tuple[str, ...]) -> list[str]:
    known = [piece for of_site, piece in MODULES if of_site == site]
    return known if pieces == (WHOLE,) else list(pieces)


def to_peft(
    language: LanguageConfig, vision: VisionConfig, adapters: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Returns the factors under peft's names; joined pieces get a copy each of their common A."""
    found = {}
    for matrix, factors in factors_of(language, vision, adapters).items():
        site = ".".join(matrix.split(".")[-2:])
        for piece, of_piece in by_piece(language, site, factors).items():
            module = BODY + _module(matrix, site, piece)
            for kind, name in KINDS.items():
                if (factor := getattr(of_piece, kind)) is not None:
                    found[f"{module}.{name}"] = factor.clone().contiguous()
    return found


def _module(matrix: str, site: str, piece: str) -> str:
    """Returns what transformers' LLaVA calls a piece of a matrix in memory; a tower's are named as they are here."""
    if matrix.startswith(TOWER):
        return LLAVA_HF.tower + matrix.removeprefix(TOWER)
    if matrix.startswith(MODULE):
        return LLAVA_HF.language + matrix.removeprefix(MODULE).partition(".")[2]
    return f"{LLAVA_HF.language}layers.{matrix.split('.')[3]}.{MODULES[site, piece]}"


def projector_from_peft(
    tensors: Mapping[str, Tensor], before: Mapping[str, Tensor], language: LanguageConfig
) -> dict[str, Tensor]:
    """Returns the projector of a peft folder under llava-hf's names, with the factors that it has merged into it.

    Args:
        tensors: of the folder; the projector as a whole, or factors beside its matrices.
        before: the projector that the adapters were trained beside, under llava-hf's names.
        language: with the adapters, whose rank and scale its factors have.

    Raises:
        ConversionError: a factor is missing, or does not have the shape that the configuration says.
    """
    found = {
        name[name.index(LLAVA_HF.projector) :]: tensors[name]
        for name in tensors
        if name.startswith(PROJECTORS)
    }
    for module in (f"{LLAVA_HF.projector}{layer}" for layer in LLAVA_HF.linear_layers):
        if any(f"{module}.{name}" in found for name in KINDS.values()):
            matrix = before[f"{module}.weight"]
            factors = _taken_factors(found, module, matrix, language)
            found = {**before, **found, f"{module}.weight": with_factors(language, module, matrix, factors)}
    return found


def _taken_factors(
    found: dict[str, Tensor], module: str, matrix: Tensor, language: LanguageConfig
) -> dict[str, Tensor]:
    """Takes the factors of a module out of what was found.

    Raises:
        ConversionError: one is missing, or does not have the shape that the configuration says.
    """
    assert language.lora is not None
    (rows, columns), rank = matrix.shape, language.lora.rank
    shapes: dict[str, Shape] = {INPUT: (rank, columns), OUTPUT: (rows, rank)}
    if language.lora.has_magnitudes:
        shapes[MAGNITUDE] = (rows,)
    factors = {}
    for kind, shape in shapes.items():
        name = f"{module}.{KINDS[kind]}"
        if name not in found:
            raise ConversionError(f"there is no {name}, which adapters of this configuration have")
        factors[f"{WHOLE}.{kind}"] = expect_shape(name, found.pop(name), shape)
    return factors


def from_peft(tensors: Mapping[str, Tensor], where: Path, vision: VisionConfig) -> dict[str, Tensor]:
    """Returns the factors among the tensors of a peft folder under native names.

    Those of a tower's layers that do not run are left out: no feature depends on them.

    Raises:
        CheckpointError: there is something else among them than factors of a language model, a tower and a projector.
    """
    places = {module: place for place, module in MODULES.items()}
    of_tower = set(layer_matrices(replace(vision, select_layer=vision.num_layers)))
    running = set(layer_matrices(vision))
    found = {}
    for name, tensor in tensors.items():
        if name.startswith(PROJECTORS):
            continue
        if (match := TOWER_FACTOR.fullmatch(name)) is not None and match[1] in of_tower:
            if match[1] in running:
                found[f"{TOWER}{match[1]}{ADAPTER}{WHOLE}.{_kind(match[2])}"] = tensor
            continue
        match = FACTOR.fullmatch(name)
        if match is None or match[2] not in places:
            raise CheckpointError(
                f"{where} holds {name}; expected factors beside the matrices of a LLaVA's "
                "language model and its tower, and its projector"
            )
        site, piece = places[match[2]]
        found[f"{LANGUAGE}decoder.layers.{match[1]}.{site}{ADAPTER}{piece}.{_kind(match[3])}"] = tensor
    return found


def _kind(stored: str) -> str:
    return next(kind for kind, name in KINDS.items() if name == stored)


def peft_section(folder: Path, adapters: Mapping[str, Tensor], num_layers: int) -> dict[str, Any]:
    """Returns `model.peft` of the adapters in a peft folder.

    Args:
        folder: has the configuration.
        adapters: the factors under native names.
        num_layers: of the language model.

    Raises:
        CheckpointError: there are none, or some layers have them beside other matrices.
    """
    config = read_object(folder / ADAPTER_CONFIG, CheckpointError)
    of_tower = {name.split(ADAPTER)[0].rpartition(".")[2] for name in adapters if name.startswith(TOWER)}
    places = {
        tuple(name.split(".decoder.layers.")[1].split(".", 1))
        for name in adapters
        if not name.startswith(TOWER)
    }
    layers = sorted({int(layer) for layer, _ in places})
    kinds = [{rest for layer, rest in places if int(layer) == number} for number in layers]
    if not adapters:
        raise CheckpointError(f"{folder} has no adapters beside a language model or a tower, expected some")
    if any(kind != kinds[0] for kind in kinds):
        raise CheckpointError(
            f"{folder} has adapters beside other matrices in some layers, expected the same"
        )
    named = {MODULES[_place(rest)].rpartition(".")[2] for kind in kinds[:1] for rest in kind}
    rank = whole(config, "r")
    return {
        "peft_scheme": DORA if config.get("use_dora") else LORA,
        "restore_from_path": None,
        "lora_tuning": {
            "variant": CANONICAL,
            "target_modules": [
                m.rpartition(".")[2] for m in MODULES.values() if m.rpartition(".")[2] in named
            ],
            "vision_target_modules": sorted(of_tower) or None,
            "adapter_dim": rank,
            # rank-stabilised, the scale is alpha through the root of the rank (https://arxiv.org/abs/2312.03732)
            "alpha": number(config, "lora_alpha") * (rank**0.5 if config.get("use_rslora") else 1.0),
            "adapter_dropout": float(config.get("lora_dropout") or 0.0),
            "dropout_position": BEFORE_FACTORS,
            "column_init_method": "kaiming",
            "row_init_method": "zero",
            "layer_selection": None if len(layers) in (0, num_layers) else [number + 1 for number in layers],
        },
    }


def refuse_other_settings(folder: Path) -> None:
    """Raises CheckpointError for a configuration that neva does not compute."""
    path = folder / ADAPTER_CONFIG
    config = read_object(path, CheckpointError)
    if config.get("peft_type") != "LORA":
        raise CheckpointError(f"{path} says peft_type {config.get('peft_type')!r}, expected 'LORA'")
    for key in sorted(config.keys() - PLAIN_KEYS):
        if config[key] not in OFF:
            raise CheckpointError(
                f"{path} says {key} {shown(config[key])}, expected nothing there: neva computes "
                "plain LoRA and DoRA"
            )
    if (start := config.get("init_lora_weights")) not in PLAIN_STARTS:
        raise CheckpointError(
            f"{path} says init_lora_weights {shown(start)}, which changes the matrices beside the "
            "factors, expected true: let peft's save_pretrained convert the adapter "
            "(path_initial_model_for_weight_conversion)"
        )
    if others := [name for name in config.get("modules_to_save") or [] if name != PROJECTOR_MODULE]:
        raise CheckpointError(
            f"{path} saves the module {others[0]} as a whole, expected none but {PROJECTOR_MODULE}"
        )


def _place(rest: str) -> tuple[str, str]:
    """Returns matrix and piece of a factor's name behind the number of its layer."""
    site, _, factor = rest.partition(ADAPTER)
    return site, factor.split(".")[0]
