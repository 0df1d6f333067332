"""Processes of a run before it starts: what the launch environment says, and the GPUs of this machine."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from omegaconf import DictConfig

from neva.distributed import launch
from neva.errors import UserError
from neva.findings import Findings


def find_launch(trainer_cfg: DictConfig, found: Findings) -> None:
    """Adds as a problem what the environment says of a launch that does not fit; that it says nothing is none."""
    if launch.is_stated():
        try:
            launch.identify(trainer_cfg.devices, trainer_cfg.num_nodes)
        except UserError as error:
            found.problems.append(str(error))


def note_gpus(trainer_cfg: DictConfig, found: Findings) -> None:
    """Notes that this machine has fewer GPUs than the run needs; on a CPU it needs none."""
    import torch

    devices = torch.cuda.device_count()
    is_on_gpus = trainer_cfg.accelerator == "gpu" or devices
    if is_on_gpus and devices < trainer_cfg.devices:
        found.notes.append(
            f"this machine has {devices} GPUs, the run asks for {trainer_cfg.devices} on each of its "
            f"{trainer_cfg.num_nodes} nodes"
        )


@contextmanager
def lone_process(seed: int) -> Iterator[None]:
    """Megatron's groups on this process alone, on the CPU: the launch environment of the run is not waited for."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Megatron's, about optional packages that neva does not use
        import torch.distributed as dist

        from neva.distributed import cuda_on_cpu, groups
        from neva.distributed.gloo import share_device

        with cuda_on_cpu.cpu_only():
            share_device()
            dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
            try:
                groups.init_model_parallel(groups.ParallelSizes(), seed=seed)
                yield
            finally:
                groups.destroy()
