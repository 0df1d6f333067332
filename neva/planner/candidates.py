"""The layouts that a number of GPUs allows, and the keys of a recipe that choose each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from neva.config.fsdp import FSDP
from neva.config.layout import data_parallel_size
from neva.config.validate import validate, world_size
from neva.errors import ConfigError
from neva.planner.job import Job
from neva.planner.state import SHARDINGS, StateSharding, sharding_of

RECOMPUTE = (None, "selective", "full")
"""Values of `model.activations_checkpoint_granularity`."""


@dataclass(frozen=True)
class Candidate:
    """A layout: ranks along each axis, a key of `SHARDINGS`, one of `RECOMPUTE`, and the virtual stages of each
    pipeline stage (None: not interleaved). Of data and context parallel ranks, `expert` share out the experts.
    """

    tensor: int
    pipeline: int
    context: int
    data: int
    sequence_parallel: bool
    sharding: str
    recompute: str | None
    virtual: int | None = None
    expert: int = 1

    @property
    def replica(self) -> int:
        """Ranks that hold one copy of the model together."""
        return self.tensor * self.pipeline * self.context

    @property
    def state_sharding(self) -> StateSharding:
        """How data-parallel ranks share out what stays for the whole run."""
        return SHARDINGS[self.sharding]


def layout_of(cfg: DictConfig) -> Candidate:
    """Returns the layout that a resolved recipe names."""
    model = cfg.model
    return Candidate(
        model.tensor_model_parallel_size,
        model.pipeline_model_parallel_size,
        model.context_parallel_size,
        data_parallel_size(model, world_size(cfg.trainer)),
        model.sequence_parallel,
        sharding_of(model),
        model.activations_checkpoint_granularity,
        model.virtual_pipeline_model_parallel_size,
        model.expert_model_parallel_size,
    )


def candidates(job: Job) -> Iterator[Candidate]:
    """Yields what the number of GPUs allows; tensor and context parallel stay inside a node, whose links they need."""
    for tensor, pipeline, context in _axes(job):
        data = job.gpus // (tensor * pipeline * context)
        for name, sharding in SHARDINGS.items():
            if not sharding.is_possible(tensor, pipeline, data * context, job.gpus_per_node):
                continue
            for recompute in RECOMPUTE:
                for sequence_parallel in (True, False) if tensor > 1 else (False,):
                    for virtual in (None, 2) if pipeline > 1 else (None,):
                        axes = (tensor, pipeline, context, data)
                        for expert in _expert_sizes(job, data * context):
                            yield Candidate(*axes, sequence_parallel, name, recompute, virtual, expert)


def _expert_sizes(job: Job, ranks: int) -> list[int]:
    experts = job.model.language.experts
    return [1] if experts is None else [size for size in _divisors(ranks) if experts.number % size == 0]


def _axes(job: Job) -> Iterator[tuple[int, int, int]]:
    for tensor in _divisors(job.gpus):
        for context in _divisors(job.gpus // tensor):
            if job.gpus_per_node % (tensor * context) or job.sequence_length % (2 * context * tensor):
                continue
            for pipeline in _divisors(job.gpus // (tensor * context)):
                yield tensor, pipeline, context


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]


def candidate_keys(job: Job, layout: Candidate) -> dict[str, Any]:
    """Returns the keys of a recipe that choose `layout`."""
    is_full = layout.recompute == "full"
    experts = {"model.expert_model_parallel_size": layout.expert}
    return {
        "trainer.devices": min(job.gpus, job.gpus_per_node),
        "trainer.num_nodes": -(-job.gpus // job.gpus_per_node),
        "model.tensor_model_parallel_size": layout.tensor,
        "model.pipeline_model_parallel_size": layout.pipeline,
        "model.virtual_pipeline_model_parallel_size": layout.virtual,
        "model.context_parallel_size": layout.context,
        **(experts if job.model.language.experts is not None else {}),
        "model.sequence_parallel": layout.sequence_parallel,
        "model.optim.name": layout.state_sharding.optimizer_name,
        "model.activations_checkpoint_granularity": layout.recompute,
        "model.activations_checkpoint_method": job.recompute_method if is_full else None,
        "model.activations_checkpoint_num_layers": job.recompute_layers if is_full else None,
        **layout.state_sharding.keys,
    }


def is_accepted(cfg: DictConfig, job: Job, layout: Candidate) -> bool:
    """Whether training accepts the layout; `cfg` keeps the layout's keys."""
    set_keys(cfg, candidate_keys(job, layout))
    try:
        validate(cfg, job.gpus)
    except ConfigError:
        return False
    return True


def set_keys(cfg: DictConfig, chosen: dict[str, Any]) -> None:
    """Sets the keys of a layout and takes out those of any other."""
    with open_dict(cfg):
        cfg.model.num_layers_in_first_pipeline_stage = None
        cfg.model.num_layers_in_last_pipeline_stage = None
        cfg.model.fsdp = False
        for key in FSDP.keys() & cfg.model.keys():
            del cfg.model[key]
        for path, value in chosen.items():
            section, _, name = path.rpartition(".")
            OmegaConf.select(cfg, section)[name] = value
