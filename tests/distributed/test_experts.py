"""Checkpoints of experts that ranks share out continue where they lie otherwise, optimizer and all."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch.distributed.checkpoint import FileSystemReader

from neva.checkpoint import store
from neva.checkpoint.state import OPTIMIZER, load_state, sharded_state
from neva.constants import PARTS
from neva.distributed import groups
from neva.distributed.fsdp.adamw import ShardedAdamW
from neva.distributed.fsdp.backend import FSDPBackend
from neva.distributed.fsdp.sharding import Sharding
from neva.distributed.megatron_ddp import MegatronDDP
from neva.optim.megatron import build_optimizer
from neva.training.step import run_global_batch
from tests.distributed.layouts import Case, build, share, wrapped
from tests.megatron import meetings, ranks_tell

CHAIN = [
    Case(2, experts=True, expert=2, distributed_optimizer=True),
    Case(2, experts=True, tensor=2, sequence_parallel=True),
    Case(2, experts=True, fsdp="full"),
    Case(2, experts=True, expert=2, fsdp="full"),
    Case(2, experts=True, expert=2),
]
"""Each begins with what the one before it has saved."""
OPTIM = OmegaConf.create({"lr": 1e-2, "weight_decay": 0.1, "betas": [0.9, 0.95], "sched": {"min_lr": 0.0}})


def step(case: Case, source: Path | None, target: Path | None) -> float:
    """Takes a step from what `source` holds and saves to `target`; returns the loss of the step."""
    groups.init_model_parallel(groups.ParallelSizes(case.tensor, expert=case.expert), seed=1234)
    models = build(case, torch.float32)
    chunks = wrapped(models, case)
    if case.fsdp is None:
        backend: Any = MegatronDDP(case.distributed_optimizer)
        optimizer: Any = build_optimizer(chunks, OPTIM, {}, 1.0, torch.float32, case.distributed_optimizer)
    else:
        backend = FSDPBackend(Sharding(case.fsdp, 2, torch.float32, False), True)
        optimizer = ShardedAdamW(chunks[0], OPTIM, {}, 1.0)
    if source is not None:
        wanted = sharded_state(backend, models, PARTS, optimizer, is_loading=True)
        load_state(backend, models, PARTS, optimizer, store.load(source, wanted))
    for chunk in chunks:
        chunk.zero_grad_buffer()
    optimizer.zero_grad()
    loss = run_global_batch(chunks, share(case, torch.float32), torch.device("cpu")).mean
    optimizer.step()
    if target is not None:
        common = {OPTIMIZER: backend.common_state(optimizer)}
        store.save(target, sharded_state(backend, models, PARTS, optimizer), common)
    return loss


def worker(rank: int, port: int, folder: Path, results: Any) -> None:
    torch.set_num_threads(1)
    losses = []
    for number, _ in zip(range(len(CHAIN)), meetings(rank, 2, port), strict=False):
        source = folder / str(number - 1) if number else None
        losses.append(step(CHAIN[number], source, folder / str(number)))
    results.put(losses)


def test_a_checkpoint_of_experts_continues_in_any_layout(
    single_process: None, tmp_path: Path, free_port: int
) -> None:
    told = ranks_tell(worker, 2, 2, free_port, tmp_path)
    assert told[0] == told[1]
    alone, expected = Case(1, experts=True), []
    for number in range(len(CHAIN) + 1):
        source, target = tmp_path / f"alone{number - 1}", tmp_path / f"alone{number}"
        expected.append(step(alone, source if number else None, target))
    # float32: sums in another order, carried through Adam's steps of 1e-2
    assert told[0] == pytest.approx(expected[:-1], abs=2e-5)
    assert step(alone, tmp_path / str(len(CHAIN) - 1), None) == pytest.approx(expected[-1], abs=2e-5)
    changes = [abs(after - before) for before, after in pairwise(expected)]
    assert min(changes) > 1e-3  # so that a lost state shows


def test_a_checkpoint_names_each_expert_as_one_rank_would(single_process: None, tmp_path: Path) -> None:
    step(Case(1, experts=True), None, tmp_path / "saved")
    names = FileSystemReader(tmp_path / "saved").read_metadata().state_dict_metadata
    for number in range(4):
        name = f"language_model.decoder.layers.3.mlp.experts.local_experts.{number}.linear_fc1.weight"
        assert {name, f"optimizer.state.exp_avg.{name}"} <= set(names)
