"""Memory that the fullest rank of a run will take, against what this machine has."""

from __future__ import annotations

import psutil
from omegaconf import DictConfig

from neva.config.samples import row_length
from neva.config.validate import world_size
from neva.findings import Findings
from neva.planner.candidates import layout_of
from neva.planner.estimate import estimate
from neva.planner.job import LABEL_SHARE, job_of
from neva.planner.report import GIB


def find_memory(cfg: DictConfig, found: Findings) -> None:
    """Adds the predicted peak of a rank, which is that of rows of full length.

    A problem when what stays for the whole run, weights above all, does not fit this machine, being of the kind that
    the run asks for; a note when only the peak does not: samples may be shorter. What the CUDA context, NCCL and
    fragmentation take is not predicted.
    """
    import torch

    model = cfg.model
    job = job_of(cfg, world_size(cfg.trainer), cfg.trainer.devices, images=1, label_share=LABEL_SHARE)
    plan = estimate(job, layout_of(cfg))
    peak, state = plan.peak, max(stage.state.total for stage in plan.stages)
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
    if model.optim.cpu_offload or model.get("fsdp_cpu_offload"):
        return
    there = f"there are {has / GIB:,.1f} GiB for {of}"
    if state > has:
        found.problems.append(
            f"weights, gradients and optimizer state take {state / GIB:,.1f} GiB on the fullest rank, {there}: choose "
            "a layout with `neva plan`"
        )
    elif peak > has:
        found.notes.append(
            f"samples of {row_length(model)} positions take {peak / GIB:,.1f} GiB on the fullest rank, {there}: "
            "lower model.micro_batch_size or recompute activations if yours are that long"
        )
