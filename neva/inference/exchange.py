"""Prompts shared out over data-parallel ranks, whose answers rank 0 has in the order of the prompts."""

from __future__ import annotations

import datetime
import pickle
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch.distributed as dist

from neva.distributed import groups

_FOREVER = datetime.timedelta(days=365)
"""A rank that dies ends the run otherwise."""


def share(numbers: Sequence[int]) -> list[int]:
    """Returns the prompts of this rank: every n-th, so that long ones at one end of a file are shared too."""
    return list(numbers[groups.data_parallel_rank() :: groups.data_parallel_size()])


def at_rank_0(
    store: dist.Store | None, numbers: Sequence[int], mine: Iterable[dict[int, Any]]
) -> Iterator[dict[int, Any]]:
    """Yields on rank 0 the answers of all ranks, as `collected` does; on the others nothing: they leave theirs."""
    if store is None or dist.get_rank() == 0:
        yield from collected(store, numbers, mine)
        return
    for said in mine:
        if groups.leads_model():
            post(store, said.items())


def post(store: dist.Store, answers: Iterable[tuple[int, Any]]) -> None:
    """Leaves answers for rank 0."""
    for number, answer in answers:
        store.set(_key(number), pickle.dumps(answer))  # type: ignore[arg-type]  # bytes serve


def collected(
    store: dist.Store | None, numbers: Sequence[int], mine: Iterable[dict[int, Any]]
) -> Iterator[dict[int, Any]]:
    """Yields the answers of all ranks, some at a time, in the order of `numbers`.

    Args:
        store: where the other ranks leave theirs; None: there are no others.
        numbers: of all prompts.
        mine: the answers of this rank as they come.
    """
    waiting, own, found = deque(numbers), set(share(numbers)), dict[int, Any]()
    for answers in mine:
        found |= answers
        if ready := _ready(waiting, own, found, store, wait=False):
            yield ready
    while ready := _ready(waiting, own, found, store, wait=True):
        yield ready


def _ready(
    waiting: deque[int], own: set[int], found: dict[int, Any], store: dist.Store | None, wait: bool
) -> dict[int, Any]:
    """Takes out what was found for the first of those that wait, up to one that has no answer yet."""
    ready: dict[int, Any] = {}
    while waiting:
        number = waiting[0]
        if number in found:
            ready[number] = found.pop(number)
        elif store is not None and number not in own and (wait and not ready or store.check([_key(number)])):
            store.wait([_key(number)], _FOREVER)
            ready[number] = pickle.loads(store.get(_key(number)))
            store.delete_key(_key(number))
        else:
            break
        waiting.popleft()
    return ready


def _key(number: int) -> str:
    return f"neva/answer/{number}"
