"""`--dry-run --as-rank` and `--all-ranks`: what ranks of a cluster would hold and send, on a machine without it."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from neva.commands.recipe import announce, quiet_imports
from neva.config.data_sources import missing_records
from neva.config.keys.training import Training
from neva.config.language import language_backend_of
from neva.config.layout import data_parallel_size
from neva.config.load import complete
from neva.config.samples import row_length
from neva.config.schema import check_purpose
from neva.config.tower import vision_config_of
from neva.config.validate import validate, world_size
from neva.errors import ConfigError, UserError
from neva.families.language import HUGGING_FACE
from neva.planner.candidates import layout_of
from neva.planner.estimate import StageMemory, estimate
from neva.planner.job import LABEL_SHARE, job_of
from neva.planner.report import GIB
from neva.quick_imports import quick_imports

if TYPE_CHECKING:
    from neva.training.rehearsal import Rehearsal

AXES = {
    "pp": "pipeline stage",
    "tp": "tensor rank",
    "cp": "context rank",
    "ep": "expert rank",
    "dp": "data rank",
}
HELD = {
    "parameters": "parameters",
    "gradients": "gradients",
    "optimizer": "optimizer",
    "peak": "peak of a step",
}
SHOWN_SAMPLES = 8
OTHERS_THAN_PLANNED = 1


def dry_run_ranks(options: argparse.Namespace) -> int:
    """Rehearses a step of one rank, or of all that differ, and prints what they hold beside what `neva plan` says.

    Returns:
        0, or 1 when a rank holds other weights or gradients than planned.

    Raises:
        ConfigError: the recipe, the rank or the size of the world is wrong, or what cannot be rehearsed.
    """
    if options.multirun or options.output is not None:
        raise ConfigError(
            "--as-rank and --all-ranks show ranks and nothing else: leave out --multirun and --output"
        )
    cfg = _recipe(options)
    if not (options.dry_run or cfg.dry_run):
        raise ConfigError(
            "--as-rank and --all-ranks show a run that is not started: give --dry-run with them"
        )
    size = world_size(cfg.trainer)
    if options.as_rank is not None and not 0 <= options.as_rank < size:
        raise ConfigError(
            f"--as-rank {options.as_rank}: the ranks of {size:,} processes are 0 to {size - 1:,}"
        )
    _refuse_unknown(cfg)
    ranks = [options.as_rank] if options.as_rank is not None else [*_first_of_each(cfg, size)]
    quiet_imports()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Megatron's, about optional packages that neva does not use
        with quick_imports():
            from neva.training.rehearsal import rehearse
        found = [rehearse(cfg, rank, LABEL_SHARE) for rank in ranks]
    stages = _planned(cfg, size)
    console = Console(highlight=False, markup=False, soft_wrap=True)
    problems = []
    for alike in _merged(found):
        planned = stages[alike[0].place["pp"]]
        _print(console, cfg, alike, planned, len(alike) * size // len(ranks) if options.all_ranks else 1)
        problems += [*_differences(alike[0], planned)]
    if options.as_rank is not None:
        console.print(f"first samples: {_samples(cfg, found[0].place['dp'], size)}")
    for problem in problems:
        console.print(problem, style="bold red")
    return OTHERS_THAN_PLANNED if problems else 0


def _recipe(options: argparse.Namespace) -> DictConfig:
    """The resolved recipe on as many nodes as the world takes."""
    cfg = complete(options.config_name, options.overrides, options.config_dir, announce)
    check_purpose(cfg, Training)
    size, devices = options.world, cfg.trainer.devices
    if size is not None:
        if size < 1 or size % devices:
            raise ConfigError(
                f"--world {size} is not a number of whole nodes of trainer.devices={devices} processes: change one"
            )
        cfg.trainer.num_nodes = size // devices
    validate(cfg, world_size(cfg.trainer))
    return cfg


def _refuse_unknown(cfg: DictConfig) -> None:
    whys = {
        "model.language_backend=huggingface, whose code may ask for numbers": language_backend_of(cfg.model)
        == HUGGING_FACE,
        "trainer.precision=16, whose loss scale depends on numbers": str(cfg.trainer.precision) == "16",
    }
    for why in (why for why, is_so in whys.items() if is_so):
        raise ConfigError(
            f"a rank cannot be shown without memory with {why}: leave out --as-rank and --all-ranks"
        )


def _planned(cfg: DictConfig, size: int) -> list[StageMemory | None]:
    """Returns what `neva plan` says of each stage; nothing where stages differ in layers, which it does not compare."""
    model = cfg.model
    if (model.num_layers_in_first_pipeline_stage, model.num_layers_in_last_pipeline_stage) != (None, None):
        return [None] * model.pipeline_model_parallel_size
    job = job_of(cfg, size, cfg.trainer.devices, images=1, label_share=LABEL_SHARE)
    return [*estimate(job, layout_of(cfg)).stages]


def _first_of_each(cfg: DictConfig, size: int) -> Iterator[int]:
    """Yields a rank for each stage, tensor and context rank; those that differ along data parallel alone are alike."""
    model = cfg.model
    share = model.tensor_model_parallel_size * model.context_parallel_size
    for stage in range(model.pipeline_model_parallel_size):
        first = stage * size // model.pipeline_model_parallel_size
        yield from range(first, first + share)


def _merged(found: Sequence[Rehearsal]) -> list[list[Rehearsal]]:
    """Returns the ranks of a stage that hold and send the same as one."""
    groups: dict[object, list[Rehearsal]] = {}
    for one in found:
        key = (one.place["pp"], one.held, *sorted(one.messages.items()), *sorted(one.message_bytes.items()))
        groups.setdefault(key, []).append(one)
    return [*groups.values()]


def _differences(found: Rehearsal, planned: StageMemory | None) -> Iterator[str]:
    if planned is None:
        return
    for name in ("parameters", "gradients"):
        holds, expected = getattr(found.held, name), getattr(planned.state, name)
        if holds != expected:
            yield f"rank {found.rank} holds {holds:,} bytes of {name}, and neva plan says {expected:,}: this is a bug"


def _print(
    console: Console, cfg: DictConfig, alike: Sequence[Rehearsal], planned: StageMemory | None, ranks: int
) -> None:
    first, model = alike[0], cfg.model
    sizes = {
        "pp": model.pipeline_model_parallel_size,
        "tp": model.tensor_model_parallel_size,
        "cp": model.context_parallel_size,
        "ep": model.expert_model_parallel_size if model.num_moe_experts is not None else None,
        "dp": data_parallel_size(model, world_size(cfg.trainer)),
    }
    place = ", ".join(
        f"{name} {first.place[axis]} of {sizes[axis]:,}"
        for axis, name in AXES.items()
        if sizes[axis] is not None
    )
    console.print(f"rank {first.rank:,} of {world_size(cfg.trainer):,}: {place}", style="bold")
    if ranks > 1:
        console.print(f"stands for {ranks:,} ranks, which hold and send the same")
    console.print(
        f"{first.num_parameters:,} parameters, {first.num_trained:,} of them trained; a step has {first.micro_batches} "
        f"micro batches of {model.micro_batch_size} x {row_length(model):,} positions\n"
    )
    console.print(_memory(first, planned))
    console.print("")
    console.print(_messages(first))
    console.print("")


def _memory(found: Rehearsal, planned: StageMemory | None) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("GiB")
    for column in ("this rank", "neva plan"):
        table.add_column(column, justify="right")
    expected: dict[str, int] = {}
    if planned is not None:
        state = planned.state
        expected = {
            "parameters": state.parameters,
            "gradients": state.gradients,
            "optimizer": state.optimizer,
        }
        expected["peak"] = planned.peak
    for kind, name in HELD.items():
        sizes = (getattr(found.held, kind), expected.get(kind))
        table.add_row(name, *("-" if size is None else f"{size / GIB:.3f}" for size in sizes))
    return table


def _messages(found: Rehearsal) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("messages of a step", "group"):
        table.add_column(column)
    for column in ("ranks", "number", "GiB in all"):
        table.add_column(column, justify="right")
    for one, number in sorted(found.messages.items()):
        size = f"{found.message_bytes[one] / GIB:.3f}"
        table.add_row(one.kind, one.group, f"{one.size:,}", f"{number:,}", size)
    return table


def _samples(cfg: DictConfig, rank: int, size: int) -> str:
    """Returns the first records that the data-parallel rank reads, or why they are not known."""
    from neva.data.build import build_dataset
    from neva.data.loader import first_indices
    from neva.data.tokenizer import load_tokenizer

    model = cfg.model
    if missing_records(model.data):
        return "unknown, the data is not here"
    if model.data.packed_sequence:
        return "known when packs are planned, at the beginning of the run"
    try:
        dataset = build_dataset(model, vision_config_of(model), load_tokenizer(model.tokenizer))
        indices = first_indices(model, dataset, rank, data_parallel_size(model, size))
        names = [f"{index} ({dataset.records[index].id})" for index in indices[:SHOWN_SAMPLES]]
    except UserError as error:
        return f"unknown, {error}"
    return f"records {', '.join(names)}{', …' * (len(indices) > SHOWN_SAMPLES)}"
