"""What the ranks of a run that goes on read of a checkpoint, each: what it holds, and little else."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.checkpoint.runs import STATE, WEIGHT, Layout, Run, give_state, language
from tests.megatron import free_ports, meetings, ranks_tell

RANKS = 2


@dataclass(frozen=True)
class Read:
    """Bytes that a rank has read, and those that it holds of weights and state.

    `checkpoint`: of all files; `largest`: of the state of the largest weight.
    """

    read: int
    weights: int
    state: int
    checkpoint: int
    largest: int


TENSOR, DATA = Layout("tensor", 2, False), Layout("data", 1, True)
FRAMES = 1.1
"""Each of 124 stored tensors has a frame of which torch reads 32 KB: 9 % of what a rank reads of these small ones."""
CASES = [(TENSOR, TENSOR), (DATA, TENSOR), (DATA, DATA), (TENSOR, DATA)]
"""A layout, and the one that saved what it goes on from."""


def counted(run: Run, folder: Path) -> Read:
    """Loads, when what loading imports is in memory, and compares what is held then."""
    run.load(folder)
    for main, _ in run.held():
        main.detach().zero_()
    read, held = run.load(folder), run.held()
    for main, values in held:
        assert main.any()
        assert torch.equal(values["exp_avg"], 2 * main) and torch.equal(values["exp_avg_sq"], main**2)
    weights = [parameter.numel() for parameter in run.model.parameters()]
    return Read(
        read=read,
        weights=sum(weights) * WEIGHT,
        state=sum(main.numel() for main, _ in held) * STATE,
        checkpoint=sum(path.stat().st_size for path in folder.iterdir()),
        largest=max(weights) * STATE,
    )


def worker(rank: int, port: int, folder: Path, results: Any) -> None:
    torch.set_num_threads(1)
    for (layout, saved), _ in zip(CASES, meetings(rank, RANKS, port), strict=False):
        run = Run(layout, language())
        if layout == saved:
            give_state(run.optimizer)
            run.save(folder / saved.name)
        results.put((layout, saved, counted(run, folder / saved.name)))


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[tuple[Layout, Layout], list[Read]]]:
    folder, found = tmp_path_factory.mktemp("saved"), defaultdict(list)
    for layout, saved, read in ranks_tell(worker, RANKS, RANKS * len(CASES), free_ports(1)[0], folder):
        found[layout, saved].append(read)
    yield found
    shutil.rmtree(folder)


@pytest.mark.parametrize("saved", [TENSOR, DATA], ids=lambda layout: layout.name)
def test_a_rank_that_shares_out_the_optimizer_reads_its_weights_and_its_state(
    told: dict[tuple[Layout, Layout], list[Read]], saved: Layout
) -> None:
    for found in told[DATA, saved]:
        held = found.weights + found.state
        # not twice, as all of the optimizer would be: the piece that the ranks divide is read by both
        assert held < found.read < FRAMES * held + found.largest


def test_a_rank_reads_its_shards_once(told: dict[tuple[Layout, Layout], list[Read]]) -> None:
    for found in told[TENSOR, TENSOR]:
        held = found.weights + found.state
        assert held < found.read < FRAMES * held


def test_a_rank_reads_once_whatever_it_needs_a_part_of(told: dict[tuple[Layout, Layout], list[Read]]) -> None:
    """torch reads a stored tensor whole; behind the first rank of a node, from memory."""
    for found in told[TENSOR, DATA]:
        assert found.read < FRAMES * found.checkpoint
