"""The keys of language models with experts: their sizes, the loss that balances them, and what goes with them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig

from neva.config.show import as_override
from neva.families.configs import ExpertsConfig

NUMBER, COEFFICIENT = "num_moe_experts", "moe_aux_loss_coeff"

EXPERT_KEYS = {
    NUMBER: "number",
    "moe_router_topk": "per_token",
    "moe_ffn_hidden_size": "ffn_hidden_size",
    "moe_router_pre_softmax": "pre_softmax",
    "moe_shared_expert_intermediate_size": "shared_ffn_hidden_size",
    COEFFICIENT: "aux_loss_coeff",
}
"""Key of `model` -> field of ExpertsConfig."""


def experts_config_of(model_cfg: DictConfig) -> ExpertsConfig | None:
    """Returns the experts of a resolved `model` section; those recorded before there were such keys have none."""
    if model_cfg.get(NUMBER) is None:
        return None
    return ExpertsConfig(**{field: model_cfg.get(key) for key, field in EXPERT_KEYS.items()})


def expert_keys(experts: ExpertsConfig | None) -> dict[str, Any]:
    """Returns the keys of `model` that describe the experts; none where there are none."""
    return {} if experts is None else {key: getattr(experts, field) for key, field in EXPERT_KEYS.items()}


def fill_experts(model_cfg: DictConfig) -> None:
    """Gives what is left out of experts that no checkpoint describes, as NeMo does."""
    if model_cfg[NUMBER] is None:
        return
    usual = {
        "moe_ffn_hidden_size": model_cfg.ffn_hidden_size,
        "moe_router_pre_softmax": False,
        COEFFICIENT: 0.0,
    }
    for key, value in usual.items():
        if model_cfg[key] is None:
            model_cfg[key] = value


def expert_switches(model_cfg: DictConfig) -> dict[str, Any]:
    """Returns the fields of Megatron's configuration on how experts are shared out and balanced."""
    if model_cfg[NUMBER] is None:
        return {}
    is_balanced = model_cfg.moe_router_load_balancing_type != "none"
    return {
        "expert_model_parallel_size": model_cfg.expert_model_parallel_size,
        "moe_router_load_balancing_type": model_cfg.moe_router_load_balancing_type,
        COEFFICIENT: model_cfg[COEFFICIENT] if is_balanced else 0.0,
        "moe_z_loss_coeff": model_cfg.moe_z_loss_coeff,
    }


def expert_width_problems(model: DictConfig, tensor: int) -> Iterator[str]:
    """Yields the widths of experts that cannot be divided over that many tensor-parallel ranks."""
    for key in ("moe_ffn_hidden_size", "moe_shared_expert_intermediate_size"):
        if model.get(NUMBER) is not None and model.get(key) is not None and model[key] % tensor:
            yield f"model.{key}={model[key]} cannot be divided by model.tensor_model_parallel_size={tensor}"


def expert_problems(cfg: DictConfig, world_size: int) -> Iterator[str]:
    """Yields what of a resolved training tree cannot go with experts, or not without."""
    model = cfg.model
    expert, number = model.expert_model_parallel_size, model[NUMBER]
    if number is None:
        if expert > 1:
            yield (
                f"model.expert_model_parallel_size={expert} shares out experts, of which this language model has none "
                f"(model.{NUMBER}=null): set it to 1"
            )
        return
    yield from _router(model)
    yield from expert_width_problems(model, model.tensor_model_parallel_size)
    if model.tensor_model_parallel_size > 1 and not model.sequence_parallel:
        yield (
            f"model.tensor_model_parallel_size={model.tensor_model_parallel_size} with experts and "
            "model.sequence_parallel=false: each rank would send all tokens to the experts; set the latter to true"
        )
    if expert > 1:
        yield from _expert_parallel(cfg, world_size)


def _router(model: DictConfig) -> Iterator[str]:
    topk, number = model.moe_router_topk, model[NUMBER]
    if topk is None or topk > number:
        yield (
            f"model.moe_router_topk={as_override(topk)} with model.{NUMBER}={number}: expected the experts of a "
            f"token, 1 to {number}"
        )
    elif topk == 1 and not model.moe_router_pre_softmax:
        yield (
            "model.moe_router_topk=1 with model.moe_router_pre_softmax=false: the one expert would always weigh 1 and "
            "the router learn nothing; set the latter to true"
        )


def _expert_parallel(cfg: DictConfig, world_size: int) -> Iterator[str]:
    model = cfg.model
    expert = model.expert_model_parallel_size
    if model[NUMBER] % expert:
        yield f"model.{NUMBER}={model[NUMBER]} cannot be divided by model.expert_model_parallel_size={expert}"
    ranks = world_size // (model.tensor_model_parallel_size * model.pipeline_model_parallel_size)
    if ranks % expert:
        yield (
            f"model.expert_model_parallel_size={expert} shares out experts over the ranks of data x context parallel, "
            f"which are {ranks} of {world_size} processes and cannot be divided by it: change it, trainer.devices or "
            "another parallel size"
        )
    if cfg.trainer.samples.prompt_file is not None:
        yield (
            f"model.expert_model_parallel_size={expert} with trainer.samples.prompt_file="
            f"{cfg.trainer.samples.prompt_file} is refused: ranks answer each by itself and have but some of the "
            "experts; set the latter to null"
        )
    if cfg.trainer.precision == 16:
        yield (
            f"model.expert_model_parallel_size={expert} with trainer.precision=16 is refused: experts and the other "
            "weights would scale the loss apart; use bf16"
        )
