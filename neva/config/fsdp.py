"""The keys of FSDP: what `model.fsdp=true` alone means, and what goes with it."""

from __future__ import annotations

from collections.abc import Iterator

from omegaconf import DictConfig

from neva.config.media import tiling_of
from neva.config.show import as_override

FSDP = {
    "fsdp_sharding_strategy": "full",
    "fsdp_grad_reduce_dtype": 32,
    "fsdp_sharded_checkpoint": True,
    "fsdp_cpu_offload": False,
}
"""Keys of `model` that act with `model.fsdp=true` only, and their values where they are not given."""


def fill_fsdp(model_cfg: DictConfig) -> None:
    """Gives the keys that are left out, where FSDP is on."""
    for key, value in FSDP.items():
        if model_cfg.fsdp and key not in model_cfg:
            model_cfg[key] = value


def fsdp_problems(cfg: DictConfig, world_size: int) -> Iterator[str]:
    """Yields what of a resolved training tree cannot go with FSDP, or not without."""
    model, trainer = cfg.model, cfg.trainer
    if not model.fsdp:
        for key in (key for key in FSDP if key in model):
            yield f"model.{key}={as_override(model[key])} acts only with model.fsdp=true: leave it out"
        return
    tensor, pipeline = model.tensor_model_parallel_size, model.pipeline_model_parallel_size
    if pipeline > 1:
        yield (
            f"model.pipeline_model_parallel_size={pipeline} with model.fsdp=true is refused: neva's FSDP cuts "
            "models of one stage; set it to 1, or take model.fsdp=false with model.optim.name=distributed_fused_adam"
        )
    if tiling_of(model.data).keeps_shape:
        kept = model.data.image_aspect_ratio
        yield (
            f"model.data.image_aspect_ratio={kept} with model.fsdp=true is refused: ranks whose pictures have "
            "different shapes would gather the tower's weights at different times; take pad or anyres, or "
            "model.fsdp=false with model.optim.name=distributed_fused_adam"
        )
    if trainer.precision not in (32, "bf16"):
        yield (
            f"trainer.precision={trainer.precision} with model.fsdp=true is refused: neva's FSDP keeps no loss scale; "
            "use bf16"
        )
    if model.get("fsdp_sharding_strategy") == "hybrid":
        yield from _hybrid_problems(trainer, tensor * model.expert_model_parallel_size)
    if model.get("fsdp_cpu_offload") and tensor > 1:
        yield (
            f"model.fsdp_cpu_offload=true with model.tensor_model_parallel_size={tensor} is refused: tensor-parallel "
            "ranks sum gradients where they can meet, not in CPU memory; set one of them otherwise"
        )
    if model.get("fsdp_cpu_offload") and trainer.accelerator == "cpu":
        yield "model.fsdp_cpu_offload=true with trainer.accelerator=cpu: the shares are in CPU memory, leave it out"


def _hybrid_problems(trainer: DictConfig, apart: int) -> Iterator[str]:
    if trainer.num_nodes == 1:
        yield (
            "model.fsdp_sharding_strategy=hybrid shards within a node and copies between nodes, but "
            "trainer.num_nodes=1: use full"
        )
    if trainer.devices % apart:
        yield (
            f"model.fsdp_sharding_strategy=hybrid shards within a node, but trainer.devices={trainer.devices} is no "
            f"multiple of tensor x expert parallel, {apart}: use full"
        )
