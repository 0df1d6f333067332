"""What a save with the distributed optimizer takes of memory, and that it writes what Megatron's own form has."""

from __future__ import annotations

import ctypes
import gc
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from neva.checkpoint import store
from neva.checkpoint.state import MODEL, OPTIMIZER
from neva.constants import ALL_PARTS
from neva.families.configs import LanguageConfig
from neva.optim import optimizer_state
from neva.optim.average import WeightAverage
from tests.checkpoint.runs import PARTS, STATE, WEIGHT, Layout, Run, give_state, language, tensors
from tests.megatron import free_ports, meetings, ranks_tell

AVERAGED = STATE + 4
"""Bytes of a parameter's state with an average of the weights."""
AROUND = 8 << 20
"""Bytes of everything else: plans, messages between ranks, what the allocator rounds."""
TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Case:
    """`size` ranks of a layout."""

    name: str
    size: int
    layout: Layout
    shape: LanguageConfig = field(default_factory=language)


DATA, BOTH = Layout("data", 1, True), Layout("both", 2, True)
CASES = [
    Case("two", 2, DATA),
    Case("tensor", 4, BOTH),
    Case("wide", 4, DATA, replace(language(num_layers=1, vocabulary=8192), tied=True)),
]
"""The last has a weight that is larger than what a rank holds: pieces of it lie on three ranks at least."""


@dataclass(frozen=True)
class Saved:
    """Bytes: the highest that a rank's memory rose in saves of three kinds, and what that is compared with.

    `share`: of the optimizer's state that it holds; `state`: of all ranks of its group; `largest`: of the state of one
    weight; `weights`: of the model's; `sent`: to other ranks in a save.
    """

    at_once: int
    background: int
    megatron: int
    share: int
    state: int
    largest: int
    weights: int
    sent: int


def rise(action: Callable[[], None]) -> int:
    """Returns by how much the memory of this process rises in `action`, at its highest."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # forgets the highest until now
    before = memory("VmRSS")
    action()
    return memory("VmHWM") - before


def memory(name: str) -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) << 10


def sent_bytes(action: Callable[[], None], patch: pytest.MonkeyPatch) -> int:
    """Returns what this rank sends to single other ranks in `action`."""
    sent, send = [], dist.batch_isend_irecv

    def counted(messages: list[dist.P2POp]) -> list[dist.Work]:
        sent.extend(message.tensor.nbytes for message in messages if message.op is dist.isend)
        return send(messages)

    with patch.context() as context:
        context.setattr(dist, "batch_isend_irecv", counted)
        action()
    return sum(sent)


def save_as_megatron(run: Run, folder: Path) -> None:
    """Saves what Megatron's own form has, which every rank holds all of."""
    (member,) = optimizer_state.members(run.optimizer)
    model = run.backend.model_state([run.model], ALL_PARTS)
    state = member.sharded_param_state_fully_reshardable(model, metadata={})
    store.save(folder, {MODEL: run.backend.model_state([run.model], PARTS), OPTIMIZER: state}, {})


def saved(run: Run, folder: Path) -> Saved:
    def in_background() -> None:
        saves = store.BackgroundSaves(TIMEOUT_S)
        run.save(folder / "background", saves)
        for main, values in run.held():  # as training that goes on changes it
            for tensor in (main.detach(), *values.values()):
                tensor.zero_()
        saves.wait()
        assert saves.finished() is None

    # what a first save imports is no part of it
    sent = sent_bytes(lambda: run.save(folder / "at_once"), pytest.MonkeyPatch())
    weights = [parameter.numel() for parameter in run.model.parameters()]
    return Saved(
        at_once=rise(lambda: run.save(folder / "at_once")),
        megatron=rise(lambda: save_as_megatron(run, folder / "megatron")),
        background=rise(in_background),  # the last, for it changes what is held
        share=sum(main.numel() for main, _ in run.held()) * AVERAGED,
        state=sum(weights) * AVERAGED,
        largest=max(weights) * AVERAGED,
        weights=sum(weights) * WEIGHT,
        sent=sent,
    )


def worker(rank: int, size: int, port: int, folder: Path, results: Any) -> None:
    torch.set_num_threads(1)
    cases = [case for case in CASES if case.size == size]
    for case, _ in zip(cases, meetings(rank, size, port), strict=False):
        run = Run(case.layout, case.shape)
        give_state(run.optimizer)
        WeightAverage(run.optimizer, 0.9, 1, False, lambda: None)
        for _, values in run.held():
            values["average"].mul_(3)
        results.put((case.name, saved(run, folder / case.name)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("saved")
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def told(folder: Path) -> dict[str, list[Saved]]:
    found: dict[str, list[Saved]] = {case.name: [] for case in CASES}
    for size in sorted({case.size for case in CASES}):
        count = size * sum(case.size == size for case in CASES)
        for name, one in ranks_tell(worker, size, count, size, free_ports(1)[0], folder):
            found[name].append(one)
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_save_takes_memory_for_what_a_rank_holds_and_one_weight(
    told: dict[str, list[Saved]], case: Case
) -> None:
    for one in told[case.name]:
        # the weights too, which one rank writes
        bound = one.share + one.largest + one.weights + AROUND
        assert one.at_once < bound
        # it copies what it writes, the weight that it has joined too
        assert one.background < bound + one.largest
        assert one.megatron > bound


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_ranks_send_each_other_the_rest_of_weights_that_they_divide_once(
    told: dict[str, list[Saved]], case: Case
) -> None:
    found = told[case.name]
    assert all(one.sent <= min(one.share, one.largest) for one in found)
    assert any(one.sent for one in found)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("kind", ["at_once", "background"])
@pytest.mark.filterwarnings("ignore:torch.distributed is")
def test_a_checkpoint_has_what_megatrons_own_form_has_bit_for_bit(
    told: dict[str, list[Saved]], folder: Path, case: Case, kind: str
) -> None:
    found = tensors(folder / case.name / kind)
    expected = {
        name.replace("state.param.", "state.fp32_param.", 1): tensor
        for name, tensor in tensors(folder / case.name / "megatron").items()
    }
    averages = {name: found.pop(name) for name in sorted(found) if ".average." in name}
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    tripled = {name: 3 * tensor for name, tensor in expected.items() if ".fp32_param." in name}
    assert averages.keys() == {name.replace("fp32_param", "average") for name in tripled}
    assert all(
        torch.equal(averages[name.replace("fp32_param", "average")], tripled[name]) for name in tripled
    )
