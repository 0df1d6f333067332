"""What the planner found: ranked layouts, the stages of the best, what was compared with what; tables or JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from neva.config.show import as_override
from neva.constants import PROJECTOR, SECOND_TOWER, VISION_TOWER
from neva.planner.candidates import Candidate, candidate_keys
from neva.planner.estimate import Plan, StageMemory
from neva.planner.flops import step_flops, total
from neva.planner.job import Job
from neva.planner.step_time import StepTime

GIB = 1024**3
ROWS: list[tuple[str, Callable[[StageMemory], int]]] = [
    ("parameters", lambda stage: stage.state.parameters),
    (
        "  vision tower",
        lambda stage: sum(
            stage.state.parameters_by_part.get(part, 0) for part in (VISION_TOWER, SECOND_TOWER)
        ),
    ),
    ("  projector", lambda stage: stage.state.parameters_by_part[PROJECTOR]),
    ("gradients", lambda stage: stage.state.gradients),
    ("optimizer", lambda stage: stage.state.optimizer),
    ("activations", lambda stage: stage.activations),
    ("  layers", lambda stage: int(stage.in_flight * stage.saved.layers)),
    ("  vision tower", lambda stage: stage.images_in_flight * stage.saved.vision_tower),
    ("  projector", lambda stage: stage.images_in_flight * stage.saved.projector),
    ("  logits", lambda stage: stage.saved.logits),
    ("workspace", lambda stage: stage.workspace),
    ("peak", lambda stage: stage.peak),
]
WIDTH = 1000
"""A table is as wide as its numbers, which a narrow terminal, or a pipe's 80 columns, would cut."""
LEGEND = "batches: micro batches in a step; GiB: peak of the fullest rank"
BASIS = """\
parameters, gradients, optimizer: exact, against what training allocates on a CPU
  (FSDP full and grad as well; hybrid not compared)
activations: counted, against saved tensors on a CPU, within 3 %
workspace: estimated; with the activations, against the peak of a forward and a
  backward pass on a CPU: 1 % below to 13 % above"""


def as_json(job: Job, ranked: list[Plan], limit: int, times: Mapping[Candidate, StepTime]) -> dict[str, Any]:
    """Returns everything that was found, sizes in bytes; `times` are those of the steps of layouts, where known."""
    return {
        "gpus": job.gpus,
        "limit": limit,
        "label_share": job.label_share,
        "images_per_sample": job.images_per_sample,
        "sequence_length": job.sequence_length,
        "model_flops": {name: found.model for name, found in step_flops(job.model, job.work, None).items()},
        "layouts": [
            {**_layout_json(job, found, limit), **_time_json(times.get(found.layout))} for found in ranked
        ],
    }


def _layout_json(job: Job, found: Plan, limit: int) -> dict[str, Any]:
    return {
        **asdict(found.layout),
        "fits": found.peak <= limit,
        "peak": found.peak,
        "micro_batches": found.micro_batches,
        "bubble": found.bubble,
        "keys": candidate_keys(job, found.layout),
        "stages": [
            {
                **asdict(stage),
                "activations": stage.activations,
                "workspace": stage.workspace,
                "peak": stage.peak,
            }
            for stage in found.stages
        ],
    }


def _time_json(time: StepTime | None) -> dict[str, Any]:
    if time is None:
        return {}
    return {
        "step_s": time.seconds,
        "samples_per_s": time.samples_per_s,
        "mfu": time.mfu,
        "step_parts_s": time.parts,
    }


def print_tables(
    job: Job,
    ranked: list[Plan],
    limit: int,
    memory_gib: float,
    reserve_gib: float,
    top: int,
    times: Mapping[Candidate, StepTime],
) -> None:
    """Prints what was assumed, the best layouts, the stages of the best one and its keys; `times` as in `as_json`."""
    console = Console(highlight=False, markup=False, width=WIDTH)

    def line(text: str, style: str | None = None) -> None:
        console.print(text, style=style, soft_wrap=True)

    fitting = [found for found in ranked if found.peak <= limit]
    line(
        f"{job.gpus} GPUs of {memory_gib:g} GiB, {reserve_gib:g} of them reserved; {job.precision}, global batch "
        f"{job.global_batch_size}, micro batch {job.micro_batch_size}\n"
        f"assumed: {job.sequence_length:,} positions in a sequence, {job.label_share:.0%} of them with a loss, "
        f"{job.images_per_sample} image(s){f' of {job.tiles_per_image} tiles' * (job.tiles_per_image > 1)}\n"
        f"{len(fitting)} of {len(ranked)} layouts fit; those that differ in recomputation or VP only share a line\n"
        f"{LEGEND}\n"
    )
    if not ranked:
        line("no layout: sizes or the batch cannot be divided among these GPUs", style="bold red")
        return
    rows = best_of_each(ranked)
    console.print(layout_table(rows[:top], limit, times))
    best = ranked[0]
    if (time := times.get(best.layout)) is not None:
        line("\nseconds of a step of the first, predicted (docs/plan.md says from what)")
        console.print(time_table(time))
    line("\nstages of the first, GiB on each rank")
    console.print(stage_table(best))
    line(f"\n{BASIS}\n")
    line("operations of a step in the first, TFLOP in all")
    console.print(flops_table(job, best))
    line("")
    if not fitting:
        line("nothing fits: more GPUs, or a smaller model.micro_batch_size", style="bold red")
        return
    chosen = "\n".join(
        f"  {path}={as_override(value)}" for path, value in candidate_keys(job, best.layout).items()
    )
    line(f"keys of the first:\n{chosen}")


def best_of_each(ranked: list[Plan]) -> list[Plan]:
    """Returns the first plan of each TP x PP x CP x EP and sharding: others differ in recomputation or interleaving."""
    first: dict[tuple[object, ...], Plan] = {}
    for found in ranked:
        layout = found.layout
        first.setdefault(
            (layout.tensor, layout.pipeline, layout.context, layout.expert, layout.sharding), found
        )
    return list(first.values())


def time_table(time: StepTime) -> Table:
    """Returns what a step's time goes to."""
    table = Table(box=None, pad_edge=False)
    for name in time.parts:
        table.add_column(name, justify="right")
    table.add_column("all", justify="right")
    table.add_row(*(f"{seconds:.3f}" for seconds in time.parts.values()), f"{time.seconds:.3f}")
    return table


def layout_table(rows: list[Plan], limit: int, times: Mapping[Candidate, StepTime]) -> Table:
    """Returns the ranked layouts, with the times that are known of them."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    shares_experts = any(found.layout.expert > 1 for found in rows)
    for column in ("", "DP", "TP", "PP", "VP", "CP", *(["EP"] if shares_experts else [])):
        table.add_column(column, justify="right", no_wrap=True)
    for column in ("SP", "sharded", "recompute"):
        table.add_column(column, no_wrap=True)
    for column in ("batches", *(["samples/s", "MFU"] if times else ["bubble"]), "GiB"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("fits", no_wrap=True)
    for number, found in enumerate(rows, 1):
        layout = found.layout
        table.add_row(
            *(str(size) for size in (number, layout.data, layout.tensor, layout.pipeline)),
            str(layout.virtual or "-"),
            str(layout.context),
            *([str(layout.expert)] if shares_experts else []),
            "yes" if layout.sequence_parallel else "-",
            layout.state_sharding.label,
            layout.recompute or "-",
            str(found.micro_batches),
            *_speed(found, times),
            _gib(found.peak),
            "yes" if found.peak <= limit else "no",
            style=None if found.peak <= limit else "dim",
        )
    return table


def _speed(found: Plan, times: Mapping[Candidate, StepTime]) -> list[str]:
    """Returns samples a second and MFU, where they are predicted, else the share of the bubble."""
    if not times:
        return [f"{found.bubble:.0%}"]
    time = times[found.layout]
    return [f"{time.samples_per_s:.1f}", f"{time.mfu:.1%}"]


def stage_table(found: Plan) -> Table:
    """Returns what each stage's ranks hold, a column a stage."""
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for stage in found.stages:
        table.add_column(f"stage {stage.stage}", justify="right")
    table.add_row("layers", *(str(stage.layers) for stage in found.stages))
    table.add_row("micro batches in flight", *(f"{stage.in_flight:g}" for stage in found.stages))
    for name, size in ROWS:
        table.add_row(name, *(_gib(size(stage)) for stage in found.stages))
    return table


def flops_table(job: Job, found: Plan) -> Table:
    """Returns what a global batch computes, part by part."""
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for column in ("forward", "backward", "again", "of the model"):
        table.add_column(column, justify="right")
    parts = step_flops(job.model, job.work, found.layout.recompute)
    whole = total(parts.values())
    for name, flops in {**parts, "all": whole}.items():
        sizes = (flops.forward, flops.backward, flops.recomputed)
        share = f"{flops.model / whole.model:.1%}"
        table.add_row(name.replace("_", " "), *(f"{size / 1e12:,.2f}" for size in sizes), share)
    return table


def _gib(size: int) -> str:
    return f"{size / GIB:.2f}"
