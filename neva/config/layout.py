"""Which parallel layouts a model and a number of processes allow."""

from __future__ import annotations

from collections.abc import Iterator

from omegaconf import DictConfig, OmegaConf

from neva.config.experts import expert_width_problems
from neva.config.language import language_backend_of
from neva.config.show import as_override
from neva.families.language import HUGGING_FACE


def data_parallel_size(model_cfg: DictConfig, world_size: int) -> int:
    """Returns the ranks that see different samples: `world_size / (tensor x pipeline x context parallel)`."""
    return world_size // (
        model_cfg.tensor_model_parallel_size
        * model_cfg.pipeline_model_parallel_size
        * model_cfg.context_parallel_size
    )


def layers_of_stages(model_cfg: DictConfig) -> list[int] | None:
    """Returns the layers of each pipeline stage; None when they cannot be assigned as the keys ask."""
    return stage_layers(
        model_cfg.num_layers,
        model_cfg.pipeline_model_parallel_size,
        model_cfg.num_layers_in_first_pipeline_stage,
        model_cfg.num_layers_in_last_pipeline_stage,
    )


def layout_problems(cfg: DictConfig, world_size: int) -> Iterator[str]:
    """Yields what is wrong with the layout of a resolved training tree on `world_size` processes."""
    for rule in (_backend, _ranks, _tensor, _pipeline, _virtual_pipeline, _sequence):
        yield from rule(cfg.model, world_size)


def division_problems(model_cfg: DictConfig, tensor: int, pipeline: int) -> Iterator[str]:
    """Yields why the model of a recorded section cannot be divided over that many ranks in generation."""
    sizes = {
        "tensor_model_parallel_size": tensor,
        "pipeline_model_parallel_size": pipeline,
        "num_layers_in_first_pipeline_stage": None,
        "num_layers_in_last_pipeline_stage": None,
        "virtual_pipeline_model_parallel_size": None,
        "context_parallel_size": 1,
        "sequence_parallel": False,
    }
    model = OmegaConf.merge(model_cfg, sizes)
    assert isinstance(model, DictConfig)
    for rule in (_backend, _tensor, _pipeline):
        yield from rule(model, tensor * pipeline)
    yield from expert_width_problems(model, tensor)


def _backend(model: DictConfig, world_size: int) -> Iterator[str]:
    if language_backend_of(model) != HUGGING_FACE:
        return
    off = {
        "tensor_model_parallel_size": 1,
        "pipeline_model_parallel_size": 1,
        "virtual_pipeline_model_parallel_size": None,
        "context_parallel_size": 1,
        "sequence_parallel": False,
    }
    if given := [
        f"model.{key}={as_override(model[key])}" for key, value in off.items() if model[key] != value
    ]:
        yield (
            f"{', '.join(given)} with model.language_backend=huggingface, whose models are whole on every rank: use "
            "data parallel or model.fsdp=true, or model.language_backend=megatron"
        )


def _ranks(model: DictConfig, world_size: int) -> Iterator[str]:
    tensor, pipeline = model.tensor_model_parallel_size, model.pipeline_model_parallel_size
    context = model.context_parallel_size
    if world_size % (tensor * pipeline * context):
        yield (
            f"{world_size} processes cannot be divided into tensor {tensor} x pipeline {pipeline} x context "
            f"{context} = {tensor * pipeline * context}: change trainer.devices or a parallel size"
        )


def _tensor(model: DictConfig, world_size: int) -> Iterator[str]:
    tensor = model.tensor_model_parallel_size
    for key in ("num_attention_heads", "num_query_groups", "ffn_hidden_size"):
        if model[key] % tensor:
            yield f"model.{key}={model[key]} cannot be divided by model.tensor_model_parallel_size={tensor}"
    if model.sequence_parallel and tensor == 1:
        yield "model.sequence_parallel=true splits sequences over tensor-parallel ranks: set it with tensor > 1"


def _pipeline(model: DictConfig, world_size: int) -> Iterator[str]:
    pipeline, layers = model.pipeline_model_parallel_size, model.num_layers
    first, last = model.num_layers_in_first_pipeline_stage, model.num_layers_in_last_pipeline_stage
    if pipeline == 1 and (first, last) != (None, None):
        yield (
            f"model.num_layers_in_first_pipeline_stage={as_override(first)} and "
            f"model.num_layers_in_last_pipeline_stage={as_override(last)} "
            "act only with model.pipeline_model_parallel_size > 1: leave them out"
        )
    elif first is None and last is None:
        if layers % pipeline:
            yield f"model.num_layers={layers} cannot be divided by model.pipeline_model_parallel_size={pipeline}"
    elif layers_of_stages(model) is None:
        yield (
            f"model.num_layers={layers} less {first or 0} on the first and {last or 0} on the last of {pipeline} "
            "stages cannot be assigned evenly, one or more each, to the stages that are left: change "
            "model.num_layers_in_first_pipeline_stage or model.num_layers_in_last_pipeline_stage"
        )


def _virtual_pipeline(model: DictConfig, world_size: int) -> Iterator[str]:
    pieces, pipeline = model.virtual_pipeline_model_parallel_size, model.pipeline_model_parallel_size
    if pieces is None:
        return
    if pieces == 1 or pipeline == 1:
        yield (
            f"model.virtual_pipeline_model_parallel_size={pieces} with model.pipeline_model_parallel_size={pipeline}: "
            "interleaving takes 2 or more of both, or null for the former"
        )
        return
    stages = layers_of_stages(model)
    if stages and any(layers % pieces for layers in stages):
        yield (
            f"stages of {sorted(set(stages))} layers cannot be cut into "
            f"model.virtual_pipeline_model_parallel_size={pieces} pieces"
        )
    replicas = max(1, data_parallel_size(model, world_size))
    micro_batches = model.global_batch_size // (model.micro_batch_size * replicas)
    if micro_batches % pipeline:
        yield (
            f"a step has {micro_batches} micro batches on each rank, which interleaving deals out in rounds of "
            f"model.pipeline_model_parallel_size={pipeline}: change model.micro_batch_size or model.global_batch_size"
        )


def _sequence(model: DictConfig, world_size: int) -> Iterator[str]:
    tensor = model.tensor_model_parallel_size if model.sequence_parallel else 1
    context = model.context_parallel_size
    chunks = tensor * (2 * context if context > 1 else 1)
    if model.data.pad_to_multiple_of % chunks:
        yield (
            f"model.data.pad_to_multiple_of={model.data.pad_to_multiple_of} cannot be divided by {chunks}, the "
            f"pieces that context parallel {context} and sequence parallel {tensor} cut a sequence into: raise it"
        )


def stage_layers(
    num_layers: int, pipeline: int, first: int | None = None, last: int | None = None
) -> list[int] | None:
    """Returns the layers of each stage; None when those beside `first` and `last` cannot be assigned evenly."""
    ends = {0: first, pipeline - 1: last} if pipeline > 1 else {}
    given = {stage: layers for stage, layers in ends.items() if layers is not None}
    left, stages = num_layers - sum(given.values()), pipeline - len(given)
    if (left % stages or left < stages) if stages else left:
        return None
    return [given.get(stage, left // stages if stages else 0) for stage in range(pipeline)]
