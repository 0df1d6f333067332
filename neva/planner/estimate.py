"""Which layouts a number of GPUs allows, what each takes on every pipeline stage, and which to prefer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from neva.planner.activations import MicroBatchSpec, PeakWorkspace, SavedActivations, saved, transient
from neva.planner.state import FLOAT32, PRECISION_BYTES, SHARDINGS, State, state
from neva.planner.tensors import ModelSpec, Split, Weight, layer_shapes, stage_weights

RECOMPUTE = {None: 1.0, "selective": 0.95, "full": 0.75}
"""Share of the computation that is not done twice: a backward pass is two forward passes, attention a small part."""


@dataclass(frozen=True)
class Candidate:
    """Ranks along each axis, what data-parallel ranks share out (`SHARDINGS`), what is recomputed, and the interleaved
    pieces of each pipeline stage (None: one, not interleaved).
    """

    tensor: int
    pipeline: int
    context: int
    data: int
    sequence_parallel: bool
    sharding: str
    recompute: str | None
    virtual: int | None = None

    @property
    def replica(self) -> int:
        """Ranks that hold one copy of the model together."""
        return self.tensor * self.pipeline * self.context


@dataclass(frozen=True)
class Job:
    """What is trained on which GPUs. `recompute_method` and `recompute_layers` are those of full recomputation."""

    model: ModelSpec
    precision: str
    micro_batch_size: int
    global_batch_size: int
    sequence_length: int
    images_per_sample: int
    label_share: float
    recompute_method: str
    recompute_layers: int
    gpus: int
    gpus_per_node: int


@dataclass(frozen=True)
class StageMemory:
    """Bytes of one rank of a pipeline stage.

    `saved` is one micro batch's; layers keep `in_flight` micro batches at once, tower and projector
    `images_in_flight`, logits one. `gathered` is what FSDP joins for a moment, `step` what Adam needs beside its state
    when the activations are gone.
    """

    stage: int
    layers: int
    in_flight: float
    images_in_flight: int
    state: State
    saved: SavedActivations
    gathered: int
    transient: PeakWorkspace
    step: int

    @property
    def activations(self) -> int:
        """Bytes that all micro batches in flight keep."""
        kept = self.saved
        images = self.images_in_flight * (kept.vision_tower + kept.projector)
        return int(self.in_flight * kept.layers) + images + kept.logits

    @property
    def workspace(self) -> int:
        """Bytes above state and activations at the highest moment."""
        return self.gathered + max(self.transient.largest, self.step - self.activations)

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


def layouts(job: Job) -> Iterator[Candidate]:
    """Yields what the number of GPUs allows.

    Tensor and context parallel stay inside a node, whose links they need. FSDP cuts whole models, so it goes with
    neither tensor nor pipeline parallel.
    """
    for tensor, pipeline, context in _axes(job):
        data = job.gpus // (tensor * pipeline * context)
        ways = data * context
        shardings = [name for name in SHARDINGS if ways > 1 or name == "none"]
        if tensor * pipeline > 1:
            shardings = [name for name in shardings if not name.startswith("fsdp")]
        if ways <= job.gpus_per_node:  # within one node hybrid is full
            shardings = [name for name in shardings if name != "fsdp_hybrid"]
        for sharding in shardings:
            for recompute in RECOMPUTE:
                for sequence_parallel in (True, False) if tensor > 1 else (False,):
                    for virtual in (None, 2) if pipeline > 1 else (None,):
                        axes = (tensor, pipeline, context, data)
                        yield Candidate(*axes, sequence_parallel, sharding, recompute, virtual)


def _axes(job: Job) -> Iterator[tuple[int, int, int]]:
    for tensor in _divisors(job.gpus):
        for context in _divisors(job.gpus // tensor):
            if job.gpus_per_node % (tensor * context) or job.sequence_length % (2 * context * tensor):
                continue
            for pipeline in _divisors(job.gpus // (tensor * context)):
                yield tensor, pipeline, context


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]


def plan(job: Job, layout: Candidate) -> Plan:
    """Counts and estimates every stage of a layout; sizes must be divisible (`neva.config.validate`)."""
    micro_batches = job.global_batch_size // (job.micro_batch_size * layout.data)
    stages = [_stage(job, layout, number, micro_batches) for number in range(layout.pipeline)]
    waiting = (layout.pipeline - 1) / (layout.virtual or 1)
    return Plan(layout, micro_batches, waiting / (micro_batches + waiting), stages)


def in_flight(layout: Candidate, stage: int, micro_batches: int) -> tuple[float, int]:
    """Micro batches that a stage has gone forward with and not yet backward, at most: of its layers, and of the first
    piece of the first stage, which has the images.

    One forward, one backward: an early stage runs ahead by the number of stages behind it. Interleaved pieces run
    ahead twice as far, and by a round of all stages for every further piece (Megatron's schedule).
    """
    behind = layout.pipeline - stage - 1
    if layout.virtual is None:
        return min(behind + 1, micro_batches), min(behind + 1, micro_batches)
    ahead = 2 * behind + (layout.virtual - 1) * layout.pipeline + 1
    of_pieces = min(ahead, micro_batches * layout.virtual)
    # forward passes, dealt in rounds, before the first piece goes backward for the first time
    rounds, rest = divmod(ahead + (layout.virtual - 1) * layout.pipeline, layout.virtual * layout.pipeline)
    of_first = rounds * layout.pipeline + min(rest, layout.pipeline)
    return of_pieces / layout.virtual, min(of_first, micro_batches)


def _stage(job: Job, layout: Candidate, number: int, micro_batches: int) -> StageMemory:
    split = Split(layout.tensor, layout.pipeline, number)
    weights = stage_weights(job.model, split)
    ways = layout.data * layout.context
    kept = state(weights, job.precision, layout.sharding, ways, min(ways, job.gpus_per_node))
    work = _work(job, layout)
    is_its_own_main_weight = job.precision == "32" or layout.sharding.startswith("fsdp")
    floats_a_parameter = 2 if is_its_own_main_weight else 3
    of_layers, of_images = in_flight(layout, number, micro_batches)
    return StageMemory(
        stage=number,
        layers=job.model.language.num_layers // layout.pipeline,
        in_flight=of_layers,
        images_in_flight=of_images,
        state=kept,
        saved=saved(job.model, split, work),
        gathered=_gathered(job, layout, weights),
        transient=transient(job.model, split, work),
        step=kept.optimizer // floats_a_parameter,
    )


def _work(job: Job, layout: Candidate) -> MicroBatchSpec:
    return MicroBatchSpec(
        precision=job.precision,
        micro_batch_size=job.micro_batch_size,
        sequence_length=job.sequence_length,
        images=job.micro_batch_size * job.images_per_sample,
        label_share=job.label_share,
        recompute=layout.recompute,
        recompute_method=job.recompute_method,
        recompute_layers=job.recompute_layers,
        context=layout.context,
        sequence_parallel=layout.sequence_parallel,
        fused_norm=True,
    )


def _gathered(job: Job, layout: Candidate, weights: list[Weight]) -> int:
    """What FSDP holds whole: the largest unit (a layer, an embedding) and the next, and a unit's gradient."""
    if not layout.sharding.startswith("fsdp"):
        return 0
    layer = sum(math.prod(shape) for shape in layer_shapes(job.model.language, 1))
    unit = max([layer, *(weight.numel for weight in weights)])
    is_whole = layout.sharding == "fsdp_grad"
    return unit * (FLOAT32 + (0 if is_whole else 2 * PRECISION_BYTES[job.precision]))


def sort_key(found: Plan, limit: int) -> tuple[object, ...]:
    """Sort key: layouts within `limit` bytes first, then most data parallel, least time lost to the bubble and to
    recomputation (in tenths), least sharding, smallest tensor and context parallel, lowest peak. Beyond the limit:
    lowest peak.
    """
    layout = found.layout
    if found.peak > limit:
        return (1, found.peak)
    useful = (1 - found.bubble) * RECOMPUTE[layout.recompute]
    return (
        0,
        layout.replica,
        -round(10 * useful),
        SHARDINGS.index(layout.sharding),
        layout.tensor,
        layout.context,
        -useful,
        found.peak,
    )
