"""A model and its optimizer, as ranks of a layout hold them, that save and load without training."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from megatron.core.optimizer import MegatronOptimizer
from omegaconf import OmegaConf
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from neva.checkpoint import store
from neva.checkpoint.state import OPTIMIZER, load_state, sharded_state
from neva.constants import LANGUAGE_MODEL
from neva.distributed import groups
from neva.distributed.megatron_ddp import MegatronDDP
from neva.families.configs import LanguageConfig
from neva.model.build import build_language_model
from neva.model.decoder_spec import transformer_config
from neva.model.llava import NevaModel
from neva.optim import optimizer_state
from neva.optim.megatron import build_optimizer
from tests.model.test_against_transformers import shapes
from tests.weights.test_reads import counters

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


def language(num_layers: int = 4, vocabulary: int = 4096) -> LanguageConfig:
    """6.3 million parameters: 88 MB of a checkpoint."""
    return replace(
        shapes("clip", 2, False)[1],
        num_layers=num_layers,
        hidden_size=256,
        ffn_hidden_size=1024,
        num_heads=8,
        num_query_groups=8,
        head_dim=32,
        vocab_size=vocabulary,
        padded_vocab_size=vocabulary,
    )


def give_state(optimizer: MegatronOptimizer) -> None:
    """Gives an optimizer a state that is known of each main weight."""
    for member in optimizer_state.members(optimizer):
        optimizer_state.initialize(member)
        for main, values in member.optimizer.state.items():
            values["exp_avg"].copy_(2 * main)
            values["exp_avg_sq"].copy_(main**2)


def tensors(folder: Path) -> dict[str, Tensor]:
    """Returns all that a checkpoint holds, whole, as this process alone reads it."""
    found = {
        name: torch.empty(stored.size, dtype=stored.properties.dtype)
        for name, stored in FileSystemReader(folder).read_metadata().state_dict_metadata.items()
        if isinstance(stored, TensorStorageMetadata)
    }
    dcp.load(dict(found), storage_reader=FileSystemReader(folder), no_dist=True)
    return found


class Run:
    """A model and its optimizer, as this rank of a layout holds them."""

    def __init__(self, layout: Layout, shape: LanguageConfig) -> None:
        groups.init_model_parallel(groups.ParallelSizes(layout.tensor), seed=1)
        config = transformer_config(
            shape,
            tensor_model_parallel_size=layout.tensor,
            params_dtype=torch.bfloat16,
            bf16=True,
        )
        self.model = NevaModel(build_language_model(shape, config), None, None)
        self.backend = MegatronDDP(layout.shards_optimizer)
        chunks = self.backend.wrap([self.model], torch.device("cpu"))
        self.optimizer = build_optimizer(
            chunks, OPTIM, {}, 1.0, torch.bfloat16, distributed=layout.shards_optimizer
        )

    def held(self) -> list[tuple[Tensor, dict[str, Tensor]]]:
        """The main weights of this rank, with their state."""
        return [
            pair
            for member in optimizer_state.members(self.optimizer)
            for pair in member.optimizer.state.items()
        ]

    def save(self, folder: Path, background: store.BackgroundSaves | None = None) -> None:
        """Saves what it holds."""
        common = {OPTIMIZER: self.backend.common_state(self.optimizer)}
        save = background.save if background is not None else store.save
        save(folder, sharded_state(self.backend, [self.model], PARTS, self.optimizer), common)

    def load(self, folder: Path) -> int:
        """Goes on from a checkpoint; returns how many bytes were read."""
        wanted = sharded_state(self.backend, [self.model], PARTS, self.optimizer, is_loading=True)
        before = counters()["rchar"]
        loaded = store.read(folder, wanted)
        read = counters()["rchar"] - before
        load_state(self.backend, [self.model], PARTS, self.optimizer, loaded)
        return read
