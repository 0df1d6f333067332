"""One step of one rank of a cluster that is not there: what it holds, computes on and sends, by shapes alone."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel
from omegaconf import DictConfig
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_leaves

from neva.config.language import language_config_of
from neva.config.layout import data_parallel_size
from neva.config.media import media_rules_of
from neva.config.parts import trained_parts
from neva.config.samples import row_length
from neva.config.tower import vision_config_of
from neva.config.validate import world_size
from neva.constants import IGNORE_INDEX, IMAGE_TOKEN_ID
from neva.data.batch import Batch
from neva.data.collate import collate
from neva.data.dataset import NO_RECORD, Sample
from neva.distributed import groups
from neva.distributed.backend import Backend, backend_for
from neva.distributed.collectives import Collective
from neva.distributed.imagined import META, imagined_rank, place_of_rank
from neva.distributed.shapes_only import CPU, ShapesOnly, shapes_only
from neva.model.build import set_trainable
from neva.model.llava import NevaModel
from neva.model.quantised import quantise_base, scales_of
from neva.training.stages import built_stages
from neva.training.step import run_global_batch

ROUNDS = (1, 2)
"""Of all pipeline stages: a step of more micro batches is run with so many, and the rest are alike."""


@dataclass(frozen=True)
class Held:
    """Bytes that a rank keeps between steps."""

    parameters: int
    gradients: int
    optimizer: int
    peak: int | None
    """The most that there are in a step whose rows are full; None under FSDP, which frees without a trace here."""


@dataclass(frozen=True)
class Rehearsal:
    """What one rank would do in a step."""

    rank: int
    place: dict[str, int]
    """Its number along each axis."""
    num_parameters: int
    num_trained: int
    held: Held
    micro_batches: int
    messages: dict[Collective, int]
    message_bytes: dict[Collective, int]


def rehearse(cfg: DictConfig, rank: int, label_share: float) -> Rehearsal:
    """Takes one optimizer step as rank `rank` of the run that a resolved recipe asks for, without its memory.

    Args:
        cfg: the recipe; `trainer.devices` and `num_nodes` are those of the cluster.
        rank: of its processes.
        label_share: share of the positions with a loss; rows are full, with one image of the largest kind.
    """
    model_cfg, size = cfg.model, world_size(cfg.trainer)
    layout = groups.ParallelSizes(
        model_cfg.tensor_model_parallel_size,
        model_cfg.pipeline_model_parallel_size,
        model_cfg.context_parallel_size,
        model_cfg.virtual_pipeline_model_parallel_size,
        model_cfg.expert_model_parallel_size,
    )
    number = model_cfg.global_batch_size // (model_cfg.micro_batch_size * data_parallel_size(model_cfg, size))
    with imagined_rank(rank, size, layout, model_cfg.seed):
        place = place_of_rank()
        if number <= sum(ROUNDS) * layout.pipeline:
            found = _step(cfg, number, label_share)
        else:
            fewer, more = (_step(cfg, rounds * layout.pipeline, label_share) for rounds in ROUNDS)
            found = extrapolated(fewer, more, number)
    return replace(found, rank=rank, place=place)


def extrapolated(fewer: Rehearsal, more: Rehearsal, micro_batches: int) -> Rehearsal:
    """Returns a step of more micro batches than two that were run: each further one sends what one sent there."""
    between, left = more.micro_batches - fewer.micro_batches, micro_batches - more.micro_batches

    def line(low: dict[Collective, int], high: dict[Collective, int]) -> dict[Collective, int]:
        return {one: value + (value - low.get(one, 0)) * left // between for one, value in high.items()}

    return replace(
        more,
        micro_batches=micro_batches,
        messages=line(fewer.messages, more.messages),
        message_bytes=line(fewer.message_bytes, more.message_bytes),
    )


def _step(cfg: DictConfig, number: int, label_share: float) -> Rehearsal:
    """Builds this rank's part, runs so many micro batches, and steps."""
    with shapes_only() as counted:
        backend = backend_for(cfg.model, node_ranks=cfg.trainer.devices)
        models = built_models(cfg.model)
        named = [parameter for model in models for parameter in model.parameters()]
        sizes = [(parameter.numel(), parameter.requires_grad) for parameter in named]
        del named
        quantise_base(models, language_config_of(cfg.model))
        found = _run(cfg, backend, models, [full_micro_batch(cfg.model, label_share)] * number, counted)
    return replace(
        found,
        num_parameters=sum(numel for numel, _ in sizes),
        num_trained=sum(numel for numel, is_trained in sizes if is_trained),
    )


def _run(
    cfg: DictConfig, backend: Backend, models: Sequence[NevaModel], batches: list[Batch], counted: ShapesOnly
) -> Rehearsal:
    chunks = backend.wrap(models, CPU)
    optimizer: Any = backend.build_optimizer(chunks, cfg.model, cfg.trainer.gradient_clip_val)
    for chunk in chunks:
        chunk.zero_grad_buffer()
    optimizer.zero_grad()
    gc.collect()
    counted.number, counted.bytes, counted.peak = Counter(), Counter(), counted.now
    run_global_batch(chunks, batches, CPU, loss_average=cfg.model.loss_average)
    weights = [*tensors_of(models)]
    gradients = [*gradients_of(chunks)]
    peak, before = counted.peak, counted.now
    optimizer.step()
    held = allocated(weights), allocated(gradients)
    is_sharded = any(isinstance(one, DTensor) for model in models for one in model.parameters())
    # moments exist from the first update on, and are there in every later step
    both = allocated([*weights, *gradients, *state_of(optimizer)])
    return Rehearsal(
        rank=-1,
        place={},
        num_parameters=0,
        num_trained=0,
        held=Held(
            *held, optimizer=both - sum(held), peak=None if is_sharded else peak + counted.now - before
        ),
        micro_batches=len(batches),
        messages=dict(counted.number),
        message_bytes=dict(counted.bytes),
    )


def built_models(model_cfg: DictConfig, device: torch.device = META) -> list[NevaModel]:
    """Returns the (virtual) stages that this rank holds, with what trains; initial weights are not drawn."""
    with device:
        models = [*built_stages(model_cfg, perform_initialization=False)]
    for model in models:
        set_trainable(model, trained_parts(model_cfg))
    return models


def full_micro_batch(model_cfg: DictConfig, label_share: float) -> Batch:
    """Returns a micro batch of rows that are full, each with an image that takes the most positions."""
    length, medium = (
        row_length(model_cfg),
        media_rules_of(model_cfg, vision_config_of(model_cfg)).largest_image,
    )
    side = media_rules_of(model_cfg, vision_config_of(model_cfg)).tile_size
    ids = torch.ones(length, dtype=torch.int64)
    ids[1 : 1 + medium.tokens] = IMAGE_TOKEN_ID
    # evenly over the row, so that ranks which share out its positions have alike
    labelled = (torch.arange(length) * label_share).frac() + label_share >= 1
    labels = torch.where(labelled, 1, IGNORE_INDEX)
    pixels = torch.empty((medium.tiles, 3, side, side), device=META)
    if medium.pictures:
        pixels = torch.empty(sum(3 * one.height * one.width for one in medium.pictures), device=META)
    sample = Sample(ids, labels, pixels, NO_RECORD, (medium,))
    rows = [[sample]] * model_cfg.micro_batch_size
    (batch,) = collate(rows, len(rows), 0, model_cfg.data.pad_to_multiple_of, same_length=True)
    return batch


def tensors_of(models: Sequence[NevaModel]) -> Iterator[Tensor]:
    """Yields the parameters of a rank, of shards what lies here, and the scales of packed ones."""
    for model in models:
        yield from map(_local, model.parameters())
        yield from scales_of(model)


def gradients_of(chunks: Sequence[Any]) -> Iterator[Tensor]:
    """Yields the gradients that are kept: Megatron's buffers, or those of shards."""
    for chunk in chunks:
        if isinstance(chunk, DistributedDataParallel):
            yield from (buffer.grad_data for buffer in [*chunk.buffers, *chunk.expert_parallel_buffers])
        yield from (_local(one.grad) for one in chunk.module.parameters() if one.grad is not None)


def state_of(optimizer: Any) -> Iterator[Tensor]:
    """Yields what an optimizer keeps: main weights, which may be the model's own, and moments."""
    for inner in getattr(optimizer, "chained_optimizers", [optimizer]):
        for tensor in tree_leaves([[*group["params"]] for group in inner.optimizer.param_groups]):
            yield _local(tensor)
        for tensor in tree_leaves([*inner.optimizer.state.values()]):
            if isinstance(tensor, Tensor):
                yield _local(tensor)


def allocated(tensors: Iterable[Tensor]) -> int:
    """Returns the bytes of tensors, each storage once."""
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
