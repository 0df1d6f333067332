"""Seconds of an optimizer step of a layout on a cluster, from operations and bytes; docs/plan.md has the formulae.

Messages of tensor, context and expert parallel wait for what they send; those of FSDP run beside the computation of
other layers; gradients of Megatron's data parallel are summed behind the last micro batch. What a step does besides
(the update, kernels that are bound by memory, latency of small messages, waiting for data) is within the efficiency.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from neva.planner.candidates import Candidate
from neva.planner.cluster import Cluster
from neva.planner.estimate import Plan
from neva.planner.flops import HEAD, Flops, step_flops, total
from neva.planner.job import Job
from neva.planner.state import FLOAT_BYTES, FullySharded
from neva.planner.tensors import LANGUAGE, Split, Weight, stage_weights
from neva.precision import precision_named

MATRICES = 2
"""Of a layer that a tensor-parallel group sums up behind: attention's and the feed-forward's second."""


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step, on the stage that takes longest; `bubble` is what it waits for others."""

    compute: float
    tensor: float
    context: float
    experts: float
    pipeline: float
    data: float
    """What data parallel (or FSDP) adds: what does not hide behind the computation."""
    bubble: float
    samples: int
    model_flops: float
    peak: float
    """FLOP/s of all GPUs at best."""

    @property
    def parts(self) -> dict[str, float]:
        """Seconds by what they go to."""
        return {
            "compute": self.compute,
            "tensor": self.tensor,
            "context": self.context,
            "experts": self.experts,
            "pipeline": self.pipeline,
            "data": self.data,
            "bubble": self.bubble,
        }

    @property
    def seconds(self) -> float:
        """All together."""
        return sum(self.parts.values())

    @property
    def samples_per_s(self) -> float:
        """Of all ranks."""
        return self.samples / self.seconds

    @property
    def mfu(self) -> float:
        """Share of the peak that the model's own operations take."""
        return self.model_flops / (self.seconds * self.peak)


def ring(kind: str, size: float, ranks: int, bandwidth: float) -> float:
    """Returns the seconds of a collective over a ring: each rank sends what the others lack, a piece at a time.

    Args:
        kind: `reduce` and `gather` take one round, `both` (an all-reduce) two.
        size: bytes of the whole tensor.
        ranks: of the group.
        bandwidth: bytes a second of a rank in one direction.
    """
    rounds = 2 if kind == "both" else 1
    return rounds * (ranks - 1) / ranks * size / bandwidth


def step_time(job: Job, plan: Plan, cluster: Cluster) -> StepTime:
    """Predicts a step of a layout."""
    layout = plan.layout
    operations = step_flops(job.model, job.work, layout.recompute)
    share = layout.data * layout.tensor * layout.context
    computed = [
        _stage_flops(operations, layout, stage) / share / cluster.flops for stage in range(layout.pipeline)
    ]
    number = plan.micro_batches
    layers = job.model.language.num_layers / layout.pipeline
    times = {
        "tensor": number * layers * _tensor(job, layout, cluster),
        "context": number * layers * _context(job, layout, cluster),
        "experts": number * layers * _experts(job, layout, cluster),
        "pipeline": number * _pipeline(job, layout, cluster),
    }
    busy = max(computed) + sum(times.values())
    waiting = (layout.pipeline - 1) / (layout.virtual or 1) / number
    return StepTime(
        compute=max(computed),
        **times,
        data=max(_data(job, layout, cluster, stage, number, busy) for stage in range(layout.pipeline)),
        bubble=waiting * busy,
        samples=job.global_batch_size,
        model_flops=total(operations.values()).model,
        peak=cluster.world * cluster.tflops * 1e12,
    )


def _stage_flops(operations: dict[str, Flops], layout: Candidate, stage: int) -> float:
    """Returns what a stage computes: its share of the layers, the first the images too, the last the head."""
    found = operations[LANGUAGE].run / layout.pipeline
    if stage == 0:
        found += sum(flops.run for name, flops in operations.items() if name not in (LANGUAGE, HEAD))
    return found + (operations[HEAD].run if stage == layout.pipeline - 1 else 0.0)


def _hidden(job: Job, layout: Candidate) -> float:
    """Returns the bytes of a micro batch's hidden states on a context-parallel rank."""
    tokens = job.micro_batch_size * job.sequence_length / layout.context
    return tokens * job.model.language.hidden_size * precision_named(job.precision).num_bytes


def _passes(layout: Candidate) -> int:
    """Forward and backward pass, and the forward pass that is done again."""
    return 3 if layout.recompute == "full" else 2


def _tensor(job: Job, layout: Candidate, cluster: Cluster) -> float:
    """Returns the seconds of a layer and micro batch: an all-reduce for each pair of matrices, in each pass.

    Sequence parallel cuts each in two halves, and gathers once more what gradients of weights need.
    """
    if layout.tensor == 1:
        return 0.0
    link = cluster.bandwidth(layout.tensor, 1)
    found = MATRICES * _passes(layout) * ring("both", _hidden(job, layout), layout.tensor, link)
    if layout.sequence_parallel and LANGUAGE in job.model.trained_parts:
        found += MATRICES * ring("gather", _hidden(job, layout), layout.tensor, link)
    return found


def _context(job: Job, layout: Candidate, cluster: Cluster) -> float:
    """Returns the seconds of a layer and micro batch: keys and values gathered, their gradients summed and cut."""
    if layout.context == 1:
        return 0.0
    language, width = job.model.language, precision_named(job.precision).num_bytes
    of_token = 2 * language.num_query_groups / layout.tensor * language.head_dim * width
    whole = job.micro_batch_size * job.sequence_length * of_token
    link = cluster.bandwidth(layout.context, layout.tensor)
    times = _passes(layout) + (layout.recompute == "selective")
    return times * ring("gather", whole, layout.context, link)


def _experts(job: Job, layout: Candidate, cluster: Cluster) -> float:
    """Returns the seconds of a layer and micro batch: tokens go to their experts and back, evenly."""
    experts = job.model.language.experts
    if experts is None or layout.expert == 1:
        return 0.0
    link = cluster.bandwidth(layout.expert, layout.tensor)
    sent = _hidden(job, layout) * experts.per_token / layout.tensor
    return 2 * _passes(layout) * ring("gather", sent, layout.expert, link)


def _pipeline(job: Job, layout: Candidate, cluster: Cluster) -> float:
    """Returns the seconds of a micro batch: hidden states to the next stage, their gradients back."""
    if layout.pipeline == 1:
        return 0.0
    ways = layout.tensor if layout.sequence_parallel else 1
    link = cluster.bandwidth(2, cluster.world // layout.pipeline)
    return 2 * (layout.virtual or 1) * _hidden(job, layout) / ways / link


def _data(job: Job, layout: Candidate, cluster: Cluster, stage: int, number: int, busy: float) -> float:
    """Returns the seconds that a stage's gradients and weights add to a step."""
    ranks, stride = layout.data * layout.context, layout.tensor
    if ranks == 1:
        return 0.0
    weights = stage_weights(job.model, Split(layout.tensor, layout.pipeline, stage, layout.expert))
    width = precision_named(job.precision).num_bytes
    shared = [weight for weight in weights if not weight.is_expert]
    sharding = layout.state_sharding
    experts = [weight for weight in weights if weight.is_expert]
    kinds = ((shared, ranks, stride), (experts, ranks // layout.expert, stride * layout.expert))
    if isinstance(sharding, FullySharded):
        return max(0.0, sum(_fully_sharded(sharding, *kind, cluster, number, width) for kind in kinds) - busy)
    found = 0.0
    for some, size, every in kinds:
        trained = _numel(weight for weight in some if weight.is_trained)
        if size > 1 and trained:
            link = cluster.bandwidth(size, every)
            is_sharded = layout.sharding == "optimizer"
            found += ring("reduce" if is_sharded else "both", trained * FLOAT_BYTES, size, link)
            found += is_sharded * ring("gather", trained * width, size, link)
    return found


def _fully_sharded(
    sharding: FullySharded,
    weights: list[Weight],
    ranks: int,
    stride: int,
    cluster: Cluster,
    number: int,
    width: int,
) -> float:
    """Returns the seconds that FSDP's messages take in a step, most of them beside the computation.

    Weights are gathered for the forward and for the backward pass of each micro batch, with `grad` once a step;
    gradients are summed and cut with each. With `hybrid` that is within a node, and nodes sum their shards once.
    """
    ways = min(ranks, max(1, cluster.gpus // stride)) if sharding.strategy == "hybrid" else ranks
    link = cluster.bandwidth(ways, stride)
    gathers = 1 if sharding.strategy == "grad" else 2 * number
    trained = FLOAT_BYTES * _numel(weight for weight in weights if weight.is_trained)
    found = gathers * ring("gather", _numel(weights) * width, ways, link)
    found += number * ring("reduce", trained, ways, link)
    nodes = ranks // ways
    return found + ring("both", trained / ways, nodes, cluster.bandwidth(nodes, ways * stride))


def _numel(weights: Iterable[Weight]) -> int:
    return sum(weight.numel for weight in weights)
