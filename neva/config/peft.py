"""`model.peft` as the adapters of a language model, and what must hold of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

from omegaconf import DictConfig, OmegaConf

from neva.config.keys.peft import (
    BEFORE_FACTORS,
    CANONICAL,
    DORA,
    HF_TARGETS,
    NEMO_VARIANT,
    NF4,
    QLORA,
    SCHEMES,
)
from neva.config.show import as_override
from neva.errors import ConfigError
from neva.families.adapters import DOWN, GATE_UP, PIECES, PROJECTION, QKV, WHOLE
from neva.families.configs import ALL, LoraConfig
from neva.families.language import HUGGING_FACE

PROJECTOR_RATE = 0.1
"""The projector's learning rate beside adapters as a share of theirs: fixed in NeVA, and what LLaVA's scripts give."""

_ATTENTION = {QKV: PIECES[QKV], PROJECTION: PIECES[PROJECTION]}
_MLP = {GATE_UP: PIECES[GATE_UP], DOWN: PIECES[DOWN]}
TARGETS: dict[str, dict[str, tuple[str, ...]]] = {
    "attention_qkv": {QKV: PIECES[QKV]},
    "attention_dense": {PROJECTION: PIECES[PROJECTION]},
    "mlp_fc1": {GATE_UP: PIECES[GATE_UP]},
    "mlp_fc2": {DOWN: PIECES[DOWN]},
    "attention": _ATTENTION,
    "mlp": _MLP,
    "all": {**_ATTENTION, **_MLP},
    "q_proj": {QKV: ("q",)},
    "k_proj": {QKV: ("k",)},
    "v_proj": {QKV: ("v",)},
    "o_proj": {PROJECTION: PIECES[PROJECTION]},
    "gate_proj": {GATE_UP: ("gate",)},
    "up_proj": {GATE_UP: ("up",)},
    "down_proj": {DOWN: PIECES[DOWN]},
}
"""Name in `target_modules` -> matrices, and the pieces of them."""


def has_adapters(model_cfg: Mapping[str, Any] | DictConfig) -> bool:
    """Whether a `model` section has adapters; those recorded before there was `peft` have none."""
    peft = model_cfg.get("peft")
    return isinstance(peft, Mapping | DictConfig) and peft.get("peft_scheme") in SCHEMES


def lora_of(model_cfg: Mapping[str, Any] | DictConfig) -> LoraConfig | None:
    """Returns the adapters of a resolved `model` section, or of one that a `.nemo` recorded; None: it has none.

    Raises:
        ConfigError: the targets do not fit the variant.
    """
    if not has_adapters(model_cfg):
        return None
    tuning = model_cfg["peft"]["lora_tuning"]
    alpha, layers, targets = (
        tuning.get("alpha"),
        tuning.get("layer_selection"),
        list(tuning["target_modules"]),
    )
    is_hf = model_cfg.get("language_backend") == HUGGING_FACE
    return LoraConfig(
        rank=tuning["adapter_dim"],
        alpha=float(tuning["adapter_dim"] if alpha is None else alpha),
        dropout=float(tuning["adapter_dropout"]),
        drops_input=tuning["dropout_position"] == BEFORE_FACTORS,
        sites=_words(targets) if is_hf else tuple(_sites(targets, tuning["variant"])),
        layers=None if layers is None else tuple(sorted({number - 1 for number in layers})),
        input_init=tuning["column_init_method"],
        output_init=tuning["row_init_method"],
        packing=model_cfg["peft"].get("quantization", NF4)
        if model_cfg["peft"]["peft_scheme"] == QLORA
        else None,
        has_magnitudes=model_cfg["peft"]["peft_scheme"] == DORA,
    )


def _words(targets: Iterable[str]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Returns the sites of matrices that are named by the last words of their names."""
    return tuple((target, (WHOLE,)) for target in sorted(set(targets)))


def tower_lora_of(model_cfg: Mapping[str, Any] | DictConfig) -> LoraConfig | None:
    """Returns the adapters beside the tower of a `model` section; None: it has none.

    Nothing is dropped there: ranks that share out images would draw other masks, and then differ in all that follow.
    """
    lora = lora_of(model_cfg)
    targets = None if lora is None else model_cfg["peft"]["lora_tuning"].get("vision_target_modules")
    if lora is None or not targets:
        return None
    return replace(lora, sites=_words(targets), layers=None, packing=None, dropout=0.0)


def fill_projector_rate(model_cfg: DictConfig) -> None:
    """Gives the projector its share of the learning rate where the YAML leaves it open."""
    if model_cfg.mm_cfg.mm_mlp_adapter_lr_ratio is None:
        model_cfg.mm_cfg.mm_mlp_adapter_lr_ratio = PROJECTOR_RATE if has_adapters(model_cfg) else 1.0


def _sites(targets: list[str], variant: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yields the matrices with their pieces."""
    for site, pieces in PIECES.items():
        named = {piece for target in targets for piece in TARGETS[target].get(site, ())}
        found = tuple(piece for piece in pieces if piece in named)
        if not found:
            continue
        if variant == NEMO_VARIANT and len(found) < len(pieces):
            raise ConfigError(
                f"model.peft.lora_tuning.target_modules={as_override(targets)} names {', '.join(found)} of "
                f"{', '.join(pieces)}, which have one pair of factors with variant={NEMO_VARIANT}: set "
                "model.peft.lora_tuning.variant=canonical, or name all of them"
            )
        yield site, (WHOLE,) if variant == NEMO_VARIANT else found


def peft_problems(cfg: DictConfig, world_size: int) -> Iterator[str]:
    """Yields what cannot go together in `model.peft` of a resolved training tree."""
    model, peft = cfg.model, cfg.model.peft
    if not has_adapters(model):
        if peft.restore_from_path is not None:
            yield (
                f"model.peft.restore_from_path={peft.restore_from_path} acts only with model.peft.peft_scheme="
                f"{' or '.join(SCHEMES)}"
            )
        return
    if not (peft.lora_tuning.target_modules or peft.lora_tuning.vision_target_modules):
        yield "model.peft.lora_tuning.target_modules is empty: name a matrix, such as attention_qkv"
    if peft.lora_tuning.vision_target_modules and not model.mm_cfg.vision_encoder.freeze:
        yield (
            "model.mm_cfg.vision_encoder.freeze=false with model.peft.lora_tuning.vision_target_modules, beside which "
            "the tower stays as it is: set it to true"
        )
    if not model.mm_cfg.llm.freeze:
        yield (
            f"model.mm_cfg.llm.freeze=false with model.peft.peft_scheme={peft.peft_scheme}, whose language model stays "
            "as it is: set it to true"
        )
    if model.language_backend == HUGGING_FACE:
        yield from _backend_problems(peft)
    beyond = [number for number in peft.lora_tuning.layer_selection or [] if number > model.num_layers]
    if beyond:
        yield f"model.peft.lora_tuning.layer_selection names layer {beyond[0]} of {model.num_layers}"
    if peft.peft_scheme == QLORA:
        yield from _packing_problems(model)
    try:
        lora = lora_of(model)
    except ConfigError as error:
        yield str(error)
        return
    assert lora is not None
    targets = as_override(OmegaConf.to_container(peft.lora_tuning.target_modules))
    if model.num_moe_experts is not None and any(site in (GATE_UP, DOWN) for site, _ in lora.sites):
        yield (
            f"model.peft.lora_tuning.target_modules={targets} with model.num_moe_experts={model.num_moe_experts}: "
            "experts have no adapters; use attention"
        )


def _backend_problems(peft: DictConfig) -> Iterator[str]:
    """Yields what does not go with a language model that transformers runs."""
    if peft.peft_scheme == QLORA:
        yield (
            "model.peft.peft_scheme=qlora packs the matrices of Megatron's layers, and model.language_backend is "
            "huggingface: use lora or dora"
        )
    if peft.lora_tuning.variant != CANONICAL:
        yield (
            f"model.peft.lora_tuning.variant={peft.lora_tuning.variant} with model.language_backend=huggingface, which "
            f"joins no matrices: use {CANONICAL}"
        )
    of_nemo = [name for name in peft.lora_tuning.target_modules if name not in (*HF_TARGETS, ALL)]
    if of_nemo:
        yield (
            f"model.peft.lora_tuning.target_modules names {of_nemo[0]} with model.language_backend=huggingface: use "
            f"{ALL}, or names of transformers such as q_proj"
        )


def _packing_problems(model: DictConfig) -> Iterator[str]:
    """Yields what packed matrices do not go with."""
    tensor, pipeline = model.tensor_model_parallel_size, model.pipeline_model_parallel_size
    if tensor * pipeline > 1:
        yield (
            f"model.peft.peft_scheme=qlora with model.tensor_model_parallel_size={tensor} and "
            f"model.pipeline_model_parallel_size={pipeline}: packed matrices go with data and context parallel and "
            "with model.fsdp=true; set both to 1, or use lora"
        )
    if model.mm_cfg.llm.from_pretrained is None and model.restore_from_path is None:
        yield (
            "model.peft.peft_scheme=qlora packs the weights of a trained language model: give "
            "model.mm_cfg.llm.from_pretrained or model.restore_from_path"
        )
    if model.num_moe_experts is not None:
        yield (
            f"model.peft.peft_scheme=qlora with model.num_moe_experts={model.num_moe_experts}: experts are not packed; "
            "use lora"
        )
    if find_spec("bitsandbytes") is None:
        yield "model.peft.peft_scheme=qlora needs bitsandbytes: pip install 'neva[qlora]', or use lora"
