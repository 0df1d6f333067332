"""The packing plan: a slow best fit, every sample once, no pack too long, order and windows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neva.data.packing import PackingPlan, plan_packs


def contents(plan: PackingPlan, lengths: np.ndarray) -> list[list[int]]:
    return [lengths[plan.members(pack)].tolist() for pack in range(len(plan))]


def slow_best_fit(lengths: list[int], capacity: int) -> list[list[int]]:
    """The longest first, each into the fullest pack that has room, the first of them; else into a new one."""
    packs: list[list[int]] = []
    for length in sorted(lengths, reverse=True):
        fitting = [pack for pack in packs if sum(pack) + length <= capacity]
        if fitting:
            max(fitting, key=sum).append(length)
        else:
            packs.append([length])
    return packs


@given(st.integers(1, 60).flatmap(lambda most: st.tuples(st.just(most), st.lists(st.integers(1, most)))))
def test_packs_are_those_of_a_slow_best_fit_and_hold_every_sample_once(drawn: tuple[int, list[int]]) -> None:
    capacity, lengths = drawn
    order = np.random.default_rng(len(lengths)).permutation(len(lengths))
    plan = plan_packs(order, np.array(lengths, dtype=np.int32), capacity)
    assert sorted(plan.samples.tolist()) == list(range(len(lengths)))
    found = contents(plan, np.array(lengths, dtype=np.int32))
    assert all(sum(pack) <= capacity and pack == sorted(pack, reverse=True) for pack in found)
    assert sorted(found) == sorted(slow_best_fit(lengths, capacity))


def test_samples_of_different_windows_share_no_pack_and_packs_keep_the_order_of_their_longest() -> None:
    lengths = np.random.default_rng(0).integers(1, 50, 400)
    plan = plan_packs(np.arange(400), lengths, 100, window=64)
    first = [plan.members(pack)[0] for pack in range(len(plan))]
    assert first == sorted(first)
    assert {tuple({index // 64 for index in plan.members(pack)}) for pack in range(len(plan))} == {
        (window,) for window in range(7)
    }


@pytest.mark.parametrize(("capacity", "least"), [(2048, 0.98), (8192, 0.99)])
def test_short_answers_and_long_talks_fill_their_packs(capacity: int, least: float) -> None:
    draw = np.random.default_rng(0)
    lengths = np.clip(draw.lognormal(5.5, 0.8, 50_000), 20, 2048).astype(np.int32)
    order = draw.permutation(len(lengths))
    plan = plan_packs(order, lengths, capacity)
    assert plan.fill(lengths, capacity) > least
    again = plan_packs(order, lengths, capacity)
    assert np.array_equal(plan.samples, again.samples) and np.array_equal(plan.ends, again.ends)


def test_what_a_full_pack_leaves_out_is_nothing() -> None:
    lengths = np.array([7, 7, 7], dtype=np.int32)
    plan = plan_packs(np.array([2, 0]), lengths, 7)
    assert [plan.members(pack) for pack in range(len(plan))] == [[2], [0]]
    assert plan.fill(lengths, 7) == 1.0
    empty = plan_packs(np.array([], dtype=np.int64), lengths, 7)
    assert len(empty) == 0
