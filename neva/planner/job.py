"""Between a recipe and the planner: what the recipe trains, and which keys choose a layout."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, open_dict

from neva.config.keys.optim import DISTRIBUTED_OPTIMIZERS
from neva.config.model_config import language_config_of, vision_config_of
from neva.config.parts import trained_parts
from neva.config.validate import validate
from neva.errors import ConfigError
from neva.planner.estimate import Candidate, Job
from neva.planner.tensors import ModelSpec

UNIFORM, ONE_LAYER = "uniform", 1
"""Full recomputation where the recipe does not say how: each layer from its input, which needs least memory."""


def job_of(cfg: DictConfig, gpus: int, gpus_per_node: int, images: int, label_share: float) -> Job:
    """Returns what a resolved recipe trains."""
    model, mm_cfg = cfg.model, cfg.model.mm_cfg
    return Job(
        model=ModelSpec(
            vision_config_of(model),
            language_config_of(model),
            mm_cfg.mm_mlp_adapter_type,
            model.make_vocab_size_divisible_by,
            trained_parts(model),
        ),
        precision=str(cfg.trainer.precision),
        micro_batch_size=model.micro_batch_size,
        global_batch_size=model.global_batch_size,
        sequence_length=model.encoder_seq_length,
        images_per_sample=images,
        label_share=label_share,
        recompute_method=model.activations_checkpoint_method or UNIFORM,
        recompute_layers=model.activations_checkpoint_num_layers or ONE_LAYER,
        gpus=gpus,
        gpus_per_node=gpus_per_node,
    )


def keys(job: Job, layout: Candidate) -> dict[str, Any]:
    """Returns the keys of a recipe that choose `layout`."""
    is_full = layout.recompute == "full"
    chosen: dict[str, Any] = {
        "trainer.devices": min(job.gpus, job.gpus_per_node),
        "trainer.num_nodes": -(-job.gpus // job.gpus_per_node),
        "model.tensor_model_parallel_size": layout.tensor,
        "model.pipeline_model_parallel_size": layout.pipeline,
        "model.virtual_pipeline_model_parallel_size": layout.virtual,
        "model.context_parallel_size": layout.context,
        "model.sequence_parallel": layout.sequence_parallel,
        "model.optim.name": DISTRIBUTED_OPTIMIZERS[0] if layout.sharding == "optimizer" else "fused_adam",
        "model.activations_checkpoint_granularity": layout.recompute,
        "model.activations_checkpoint_method": job.recompute_method if is_full else None,
        "model.activations_checkpoint_num_layers": job.recompute_layers if is_full else None,
    }
    if layout.sharding.startswith("fsdp"):
        chosen["model.fsdp"] = True
        chosen["model.fsdp_sharding_strategy"] = layout.sharding.removeprefix("fsdp_")
    return chosen


def is_possible(cfg: DictConfig, job: Job, layout: Candidate) -> bool:
    """Whether training accepts the layout; `cfg` keeps the layout's keys."""
    choose(cfg, keys(job, layout))
    try:
        validate(cfg, job.gpus)
    except ConfigError:
        return False
    return True


def choose(cfg: DictConfig, chosen: dict[str, Any]) -> None:
    """Sets the keys of a layout and takes out those of any other."""
    with open_dict(cfg):
        cfg.model.num_layers_in_first_pipeline_stage = None
        cfg.model.num_layers_in_last_pipeline_stage = None
        cfg.model.fsdp = False
        for key in [key for key in cfg.model if str(key).startswith("fsdp_")]:
            del cfg.model[key]
        for path, value in chosen.items():
            section, _, name = path.rpartition(".")
            node = cfg
            for step in section.split("."):
                node = node[step]
            node[name] = value
