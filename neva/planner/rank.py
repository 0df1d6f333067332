"""Which of the layouts that training accepts to prefer."""

from __future__ import annotations

from omegaconf import DictConfig

from neva.planner.candidates import candidates, is_accepted
from neva.planner.estimate import Plan, estimate
from neva.planner.job import Job
from neva.planner.state import SHARDINGS

USEFUL = {None: 1.0, "selective": 0.95, "full": 0.75}
"""Share of the computation that is not done twice: a backward pass is two forward passes, attention a small part."""


def rank(cfg: DictConfig, job: Job, limit: int) -> list[Plan]:
    """Returns all layouts that training accepts, best first; `cfg` keeps the keys of one of them."""
    plans = [estimate(job, layout) for layout in candidates(job) if is_accepted(cfg, job, layout)]
    return sorted(plans, key=lambda found: sort_key(found, limit))


def sort_key(found: Plan, limit: int) -> tuple[object, ...]:
    """Returns the order of preference.

    Layouts within `limit` bytes come first; among them most data parallel, least time lost to the bubble and to
    recomputation (in tenths), least sharding, smallest tensor, context and expert parallel, lowest peak. Beyond the
    limit: lowest peak.
    """
    layout = found.layout
    if found.peak > limit:
        return (1, found.peak)
    useful = (1 - found.bubble) * USEFUL[layout.recompute]
    return (
        0,
        layout.replica,
        -round(10 * useful),
        list(SHARDINGS).index(layout.sharding),
        layout.tensor,
        layout.context,
        layout.expert,
        -useful,
        found.peak,
    )
