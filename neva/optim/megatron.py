"""Megatron's AdamW with neva's parameter groups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import (
    USING_PYTORCH_OPTIMIZER,
    MegatronOptimizer,
    OptimizerConfig,
    ParamKey,
    ParamPredicate,
    ParamWithNamePredicate,
    get_megatron_optimizer,
)
from megatron.core.optimizer_param_scheduler import ParamGroupOverride
from omegaconf import DictConfig

from neva.optim.lightning_adapter import require_finite
from neva.optim.rules import is_inside, is_vector


@dataclass(frozen=True)
class LossScale:
    """Dynamic scale of the loss, which keeps float16 gradients in range.

    It doubles after `loss_scale_window` steps without overflow and halves after `hysteresis` overflows.
    """

    initial_loss_scale: float
    loss_scale_window: int
    hysteresis: int


def build_optimizer(
    chunks: list[DistributedDataParallel],
    optim_cfg: DictConfig,
    lr_ratios: Mapping[str, float],
    clip_grad: float,
    dtype: torch.dtype,
    distributed: bool = False,
    loss_scale: LossScale | None = None,
) -> MegatronOptimizer:
    """Builds Megatron's AdamW over the trainable parameters; frozen ones get neither gradient memory nor state.

    Args:
        chunks: wrapped model chunks of this rank.
        optim_cfg: `model.optim`.
        lr_ratios: factor on the learning rate by part (`vision_tower`, `projector`, …); absent means 1.
        clip_grad: largest global gradient norm; 0 switches clipping off.
        dtype: of the parameters; bfloat16 and float16 add float32 main weights.
        distributed: shards main weights and state over the data-parallel ranks.
        loss_scale: needed with float16; a step whose gradients overflow is skipped and lowers it.
    """
    is_fp16 = dtype == torch.float16
    config = OptimizerConfig(
        optimizer="adam",
        lr=optim_cfg.lr,
        min_lr=optim_cfg.sched.min_lr,
        weight_decay=optim_cfg.weight_decay,
        adam_beta1=optim_cfg.betas[0],
        adam_beta2=optim_cfg.betas[1],
        clip_grad=clip_grad,
        bf16=dtype == torch.bfloat16,
        fp16=is_fp16,
        **(asdict(loss_scale) if is_fp16 and loss_scale else {}),
        params_dtype=dtype,
        use_distributed_optimizer=distributed,
    )
    optimizer = get_megatron_optimizer(config, chunks, _overrides(lr_ratios))
    norm_of = optimizer.get_grad_norm
    # asked for in each step, clipping or not, behind the sums over ranks and before the first update
    optimizer.get_grad_norm = lambda: require_finite(norm_of())
    if is_fp16:
        chunks[0].config.grad_scale_func = optimizer.scale_loss
    for group in optimizer.param_groups:
        group["weight_decay"] = optim_cfg.weight_decay * group["wd_mult"]
        if USING_PYTORCH_OPTIMIZER:
            group["fused"] = True  # no temporaries, and one kernel instead of a dozen
    return optimizer


def _overrides(lr_ratios: Mapping[str, float]) -> dict[ParamKey, ParamGroupOverride]:
    """Maps parameters to what is special about them: no decay for vectors, a learning-rate ratio by part."""
    vectors = ParamPredicate(name="vectors", fn=is_vector)
    overrides = {ParamKey(predicate=vectors): ParamGroupOverride(wd_mult=0.0)}
    for part, ratio in lr_ratios.items():
        if ratio != 1.0:
            inside = partial(_is_parameter_inside, part)
            key = ParamKey(with_name_predicate=ParamWithNamePredicate(name=part, fn=inside))
            overrides[key] = ParamGroupOverride(lr_mult=ratio)
    return overrides


def _is_parameter_inside(part: str, _: torch.nn.Parameter, name: str) -> bool:
    return is_inside(part, name)
