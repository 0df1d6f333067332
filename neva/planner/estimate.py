"""What a layout takes on every pipeline stage."""

from __future__ import annotations

import math
from dataclasses import dataclass

from neva.families.language import layer_shapes
from neva.families.mixtral.table import EXPERTS
from neva.planner.activations import (
    PeakWorkspace,
    SavedActivations,
    peak_workspace,
    saved_activations,
)
from neva.planner.candidates import Candidate
from neva.planner.job import Job
from neva.planner.micro_batch import MicroBatchSpec
from neva.planner.state import FLOAT_BYTES, RankState, rank_state
from neva.planner.tensors import Split, Weight, stage_weights
from neva.precision import precision_named


@dataclass(frozen=True)
class StageMemory:
    """Bytes of one rank of a pipeline stage.

    `saved` is one micro batch's; layers keep `in_flight` micro batches at once, tower and projector
    `images_in_flight`, logits one. `gathered` is what FSDP all-gathers for a moment. Adam's step needs nothing: it is
    one kernel over all that it updates.
    """

    stage: int
    layers: int
    in_flight: float
    images_in_flight: int
    state: RankState
    saved: SavedActivations
    gathered: int
    transient: PeakWorkspace

    @property
    def activations(self) -> int:
        """Bytes that all micro batches in flight keep."""
        kept = self.saved
        images = self.images_in_flight * (kept.vision_tower + kept.projector)
        return int(self.in_flight * kept.layers) + images + kept.logits

    @property
    def workspace(self) -> int:
        """Bytes above state and activations at the highest moment."""
        return self.gathered + self.transient.largest

    @property
    def peak(self) -> int:
        """Bytes at the highest moment."""
        return self.state.total + self.activations + self.workspace


@dataclass(frozen=True)
class Plan:
    """A layout with what it takes; `bubble` is the share of a step in which a pipeline stage waits."""

    layout: Candidate
    micro_batches: int
    bubble: float
    stages: list[StageMemory]

    @property
    def peak(self) -> int:
        """Bytes on the fullest rank."""
        return max(stage.peak for stage in self.stages)


def estimate(job: Job, layout: Candidate) -> Plan:
    """Counts and estimates every stage of a layout; sizes must be divisible (`neva.config.validate`)."""
    micro_batches = job.global_batch_size // (job.micro_batch_size * layout.data)
    stages = [_stage(job, layout, number, micro_batches) for number in range(layout.pipeline)]
    waiting = (layout.pipeline - 1) / (layout.virtual or 1)
    return Plan(layout, micro_batches, waiting / (micro_batches + waiting), stages)


def in_flight(layout: Candidate, stage: int, micro_batches: int) -> tuple[float, int]:
    """Returns how many micro batches a stage has gone forward with and not yet backward, at most.

    One forward, one backward: an early stage runs ahead by the number of stages behind it. Virtual stages run ahead
    twice as far, and by a round of all stages for every further virtual stage (Megatron's schedule).

    Returns:
        Those of all its layers, and those of its first virtual stage, which on the first stage has the images.
    """
    behind = layout.pipeline - stage - 1
    if layout.virtual is None:
        return min(behind + 1, micro_batches), min(behind + 1, micro_batches)
    ahead = 2 * behind + (layout.virtual - 1) * layout.pipeline + 1
    of_virtual = min(ahead, micro_batches * layout.virtual)
    # forward passes, assigned in rounds, before the first virtual stage goes backward for the first time
    rounds, rest = divmod(ahead + (layout.virtual - 1) * layout.pipeline, layout.virtual * layout.pipeline)
    of_first = rounds * layout.pipeline + min(rest, layout.pipeline)
    return of_virtual / layout.virtual, min(of_first, micro_batches)


def _stage(job: Job, layout: Candidate, number: int, micro_batches: int) -> StageMemory:
    split = Split(layout.tensor, layout.pipeline, number, layout.expert)
    weights, precision = stage_weights(job.model, split), precision_named(job.precision)
    sharding, ways = layout.state_sharding, layout.data * layout.context
    node_ways = min(ways, max(1, job.gpus_per_node // layout.tensor))
    average = FLOAT_BYTES if job.averages_weights else 0
    state = rank_state(sharding, weights, precision, ways, node_ways, layout.expert, average)
    work = _work(job, layout)
    of_layers, of_images = in_flight(layout, number, micro_batches)
    return StageMemory(
        stage=number,
        layers=job.model.language.num_layers // layout.pipeline,
        in_flight=of_layers,
        images_in_flight=of_images,
        state=state,
        saved=saved_activations(job.model, split, work),
        gathered=sharding.gathered(_largest_unit(job, layout, weights), precision),
        transient=peak_workspace(job.model, split, work),
    )


def _work(job: Job, layout: Candidate) -> MicroBatchSpec:
    return MicroBatchSpec(
        precision=job.precision,
        micro_batch_size=job.micro_batch_size,
        sequence_length=job.sequence_length,
        images=job.micro_batch_size * job.images_per_sample * job.tiles_per_image,
        label_share=job.label_share,
        recompute=layout.recompute,
        recompute_method=job.recompute_method,
        recompute_layers=job.recompute_layers,
        context=layout.context,
        sequence_parallel=layout.sequence_parallel,
        fused_norm=True,
    )


def _largest_unit(job: Job, layout: Candidate, weights: list[Weight]) -> int:
    """Elements of the largest unit that FSDP all-gathers: what a rank has of a layer, or an embedding."""
    layer = sum(
        math.prod(shape) // (layout.expert if EXPERTS in name else 1)
        for name, shape in layer_shapes(job.model.language, layout.tensor).items()
    )
    return max([layer, *(weight.numel for weight in weights)])
