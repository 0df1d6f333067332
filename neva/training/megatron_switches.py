"""The switches of Megatron's configuration that a recipe chooses."""

from __future__ import annotations

from typing import Any

import torch
from omegaconf import DictConfig

from neva.config.experts import expert_switches
from neva.precision import precision_named


def megatron_switches(model_cfg: DictConfig) -> dict[str, Any]:
    """Returns fields of `TransformerConfig` as a resolved `model` section says: layout, precision, recomputation."""
    dtype = precision_named(model_cfg.precision).dtype
    return {
        "tensor_model_parallel_size": model_cfg.tensor_model_parallel_size,
        "pipeline_model_parallel_size": model_cfg.pipeline_model_parallel_size,
        "virtual_pipeline_model_parallel_size": model_cfg.virtual_pipeline_model_parallel_size,
        "num_layers_in_first_pipeline_stage": model_cfg.num_layers_in_first_pipeline_stage,
        "num_layers_in_last_pipeline_stage": model_cfg.num_layers_in_last_pipeline_stage,
        "context_parallel_size": model_cfg.context_parallel_size,
        "sequence_parallel": model_cfg.sequence_parallel,
        "params_dtype": dtype,
        "pipeline_dtype": dtype,
        "bf16": dtype == torch.bfloat16,
        "fp16": dtype == torch.float16,
        "init_method_std": model_cfg.init_method_std,
        "recompute_granularity": model_cfg.activations_checkpoint_granularity,
        "recompute_method": model_cfg.activations_checkpoint_method,
        "recompute_num_layers": model_cfg.activations_checkpoint_num_layers,
        **expert_switches(model_cfg),
    }
