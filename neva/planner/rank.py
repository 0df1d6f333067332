"""Which of the layouts that training accepts to prefer."""

from __future__ import annotations

from typing import NamedTuple

from omegaconf import DictConfig

from neva.planner.candidates import candidates, is_accepted
from neva.planner.cluster import Cluster
from neva.planner.estimate import Plan, estimate
from neva.planner.job import Job
from neva.planner.state import SHARDINGS
from neva.planner.step_time import StepTime, step_time

USEFUL = {None: 1.0, "selective": 0.95, "full": 0.75}
"""Share of the computation that is not done twice: a backward pass is two forward passes, attention a small part."""


class TimedPlan(NamedTuple):
    """A layout and the time of its step."""

    plan: Plan
    time: StepTime


def rank(cfg: DictConfig, job: Job, limit: int) -> list[Plan]:
    """Returns all layouts that training accepts, best first; `cfg` keeps the keys of one of them."""
    plans = [estimate(job, layout) for layout in candidates(job) if is_accepted(cfg, job, layout)]
    return sorted(plans, key=lambda found: sort_key(found, limit))


def fastest(plans: list[Plan], job: Job, limit: int, cluster: Cluster) -> list[TimedPlan]:
    """Returns layouts with the time of their step: those within `limit` bytes first, the most samples a second first.

    Beyond the limit: lowest peak. Layouts that take as long stand in the order in which they are given.
    """
    timed = [TimedPlan(found, step_time(job, found, cluster)) for found in plans]
    return sorted(
        timed,
        key=lambda one: (
            one.plan.peak > limit,
            one.plan.peak if one.plan.peak > limit else one.time.seconds,
        ),
    )


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
