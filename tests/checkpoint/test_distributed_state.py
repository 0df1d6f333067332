"""A checkpoint of a distributed optimizer has each weight's own state, however ranks divide the buffers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from neva.checkpoint import store
from neva.checkpoint.state import sharded_state
from neva.constants import ALL_PARTS
from neva.distributed import groups
from neva.distributed.megatron_ddp import MegatronDDP
from neva.optim.megatron import build_optimizer
from tests.checkpoint.runs import OPTIM, give_state, tensors
from tests.distributed.layouts import Case, build, wrapped
from tests.megatron import free_ports, meetings, ranks_tell

RANKS = 4
MAIN = "optimizer.state.fp32_param."
CASES = [
    Case(RANKS, pipeline=2, virtual=2, tied=True, distributed_optimizer=True),
    Case(RANKS, experts=True, expert=2, distributed_optimizer=True),
]
"""A tied embedding has a bucket of its own, behind padding that Megatron's own form for checkpoints forgets."""


def worker(rank: int, port: int, folder: Path, results: Any) -> None:
    torch.set_num_threads(1)
    for case, _ in zip(CASES, meetings(rank, RANKS, port), strict=False):
        groups.init_model_parallel(
            groups.ParallelSizes(pipeline=case.pipeline, virtual_pipeline=case.virtual, expert=case.expert),
            seed=1,
        )
        models, backend = build(case, torch.bfloat16), MegatronDDP(True)
        optimizer = build_optimizer(wrapped(models, case), OPTIM, {}, 1.0, torch.bfloat16, True)
        give_state(optimizer)
        store.save(folder / str(case), sharded_state(backend, models, ALL_PARTS, optimizer), {})
    results.put(rank)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("saved")
    ranks_tell(worker, RANKS, RANKS, free_ports(1)[0], path)
    yield path


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.filterwarnings("ignore:torch.distributed is")
def test_a_weight_has_its_own_state(folder: Path, case: Case) -> None:
    found = tensors(folder / str(case))
    mains = {name.removeprefix(MAIN): tensor for name, tensor in found.items() if name.startswith(MAIN)}
    weights = [name for name in found if not name.startswith("optimizer.")]
    assert len(found) == len(weights) + 3 * len(mains)
    for name, main in mains.items():
        first, second = (found[f"optimizer.state.{kind}.{name}"] for kind in ("exp_avg", "exp_avg_sq"))
        assert torch.equal(main.bfloat16(), found[name]), name
        assert torch.equal(first, 2 * main) and torch.equal(second, main**2), name
