"""Memory that the fullest rank of a run will take, against what this machine has."""

from __future__ import annotations

import psutil
from omegaconf import DictConfig

from neva.config.layout import data_parallel_size
from neva.config.validate import world_size
from neva.findings import Findings
from neva.planner.candidates import Candidate
from neva.planner.estimate import estimate
from neva.planner.job import LABEL_SHARE, job_of
from neva.planner.state import sharding_of

GIB = 2**30


def find_memory(cfg: DictConfig, found: Findings) -> None:
    """Adds the predicted peak of a rank; a problem when this machine, being of the kind the run asks for, has less.

    What the CUDA context, NCCL and fragmentation take is not predicted, so that a run may fail that just fits.
    """
    import torch

    ranks = world_size(cfg.trainer)
    model = cfg.model
    layout = Candidate(
        model.tensor_model_parallel_size,
        model.pipeline_model_parallel_size,
        model.context_parallel_size,
        data_parallel_size(model, ranks),
        model.sequence_parallel,
        sharding_of(model),
        model.activations_checkpoint_granularity,
        model.virtual_pipeline_model_parallel_size,
    )
    peak = estimate(job_of(cfg, ranks, cfg.trainer.devices, 1, LABEL_SHARE), layout).peak
    devices = torch.cuda.device_count() if cfg.trainer.accelerator != "cpu" else 0
    if devices:
        has, of = torch.cuda.get_device_properties(0).total_memory, "each GPU"
    elif cfg.trainer.accelerator != "gpu":
        has, of = (
            psutil.virtual_memory().total // cfg.trainer.devices,
            "each of the processes on this machine",
        )
    else:
        found.add("memory", f"{peak / GIB:,.1f} GiB on the fullest GPU")
        return
    found.add("memory", f"{peak / GIB:,.1f} GiB on the fullest rank of {has / GIB:,.1f} GiB for {of}")
    is_counted = not (model.optim.cpu_offload or model.get("fsdp_cpu_offload"))
    if peak > has and is_counted:
        found.problems.append(
            f"the fullest rank will take {peak / GIB:,.1f} GiB, there are {has / GIB:,.1f} GiB for {of}: lower "
            "model.micro_batch_size, recompute activations, or choose a layout with `neva plan`"
        )
