"""What the ranks of a run that goes on read of a checkpoint, each: what it holds, and little else."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from neva.checkpoint import store
from neva.checkpoint.state import OPTIMIZER, load_state, sharded_state
from neva.constants import LANGUAGE_MODEL
from neva.distributed import groups
from neva.distributed.megatron_ddp import MegatronDDP
from neva.families.configs import LanguageConfig
from neva.model.build import build_language_model
from neva.model.language import transformer_config
from neva.model.llava import NevaModel
from neva.optim import optimizer_state
from neva.optim.megatron import build_optimizer
from tests.megatron import free_ports, meetings, ranks_tell
from tests.model.test_against_transformers import shapes
from tests.weights.test_reads import counters

RANKS = 2
PARTS = (LANGUAGE_MODEL,)
OPTIM = OmegaConf.create({"lr": 1e-3, "weight_decay": 0.1, "betas": [0.9, 0.95], "sched": {"min_lr": 0.0}})
WEIGHT, STATE = 2, 12
"""Bytes of a parameter in a checkpoint: bf16; main weight and Adam's moments in float32."""


@dataclass(frozen=True)
class Layout:
    """`tensor` ranks share each layer; the others are data parallel and may share out the optimizer."""

    name: str
    tensor: int
    shards_optimizer: bool


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


def language() -> LanguageConfig:
    """6.3 million parameters: 88 MB of a checkpoint."""
    return replace(
        shapes("clip", 2, False)[1],
        num_layers=4,
        hidden_size=256,
        ffn_hidden_size=1024,
        num_heads=8,
        num_query_groups=8,
        head_dim=32,
        vocab_size=4096,
        padded_vocab_size=4096,
    )


class Run:
    """A model and its optimizer, as this rank of a layout holds them."""

    def __init__(self, layout: Layout) -> None:
        groups.init_model_parallel(groups.ParallelSizes(layout.tensor), seed=1)
        config = transformer_config(
            language(),
            tensor_model_parallel_size=layout.tensor,
            params_dtype=torch.bfloat16,
            bf16=True,
        )
        self.model = NevaModel(build_language_model(language(), config), None, None)
        self.backend = MegatronDDP(layout.shards_optimizer)
        chunks = self.backend.wrap([self.model], torch.device("cpu"))
        self.optimizer = build_optimizer(
            chunks, OPTIM, {}, 1.0, torch.bfloat16, distributed=layout.shards_optimizer
        )

    def stepped(self) -> None:
        """Gives the optimizer a state that is known of each main weight."""
        for member in optimizer_state.members(self.optimizer):
            optimizer_state.initialize(member)
            for main, values in member.optimizer.state.items():
                values["exp_avg"].copy_(2 * main)
                values["exp_avg_sq"].copy_(main**2)

    def held(self) -> list[tuple[Tensor, dict[str, Tensor]]]:
        """The main weights of this rank, with their state."""
        return [
            pair
            for member in optimizer_state.members(self.optimizer)
            for pair in member.optimizer.state.items()
        ]

    def save(self, folder: Path) -> None:
        """Saves what it holds."""
        common = {OPTIMIZER: self.backend.common_state(self.optimizer)}
        store.save(folder, sharded_state(self.backend, [self.model], PARTS, self.optimizer), common)

    def load(self, folder: Path) -> int:
        """Goes on from a checkpoint; returns how many bytes were read."""
        wanted = sharded_state(self.backend, [self.model], PARTS, self.optimizer, is_loading=True)
        before = counters()["rchar"]
        loaded = store.read(folder, wanted)
        read = counters()["rchar"] - before
        load_state(self.backend, [self.model], PARTS, self.optimizer, loaded)
        return read


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
        run = Run(layout)
        if layout == saved:
            run.stepped()
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
