"""Lightning's view of who started the processes; `neva.distributed.launch` decides, so that there is one decision."""

from __future__ import annotations

from lightning.fabric.plugins.environments import (
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from lightning.pytorch.plugins.environments import ClusterEnvironment

from neva.distributed import launch


def cluster_environment(place: launch.Launch) -> ClusterEnvironment:
    """Returns the environment that Lightning reads addresses and ranks from.

    SLURM's own requeue of Lightning stays off: its checkpoint is not NeMo's, from which `neva` resumes.
    """
    if place.launcher == launch.TORCHRUN:
        return TorchElasticEnvironment()
    if place.launcher == launch.SLURM:
        return SLURMEnvironment(auto_requeue=False)
    return LightningEnvironment()
