"""Killed at random and continued in another layout, a run consumes what an unbroken one does."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.distributed.kill_drill import DATA, ROUND, assert_same, beginning, data_of, drill, unbroken
from tests.training.conftest import colours  # noqa: F401


@pytest.fixture(scope="module")
def begin(tmp_path_factory: pytest.TempPathFactory, colours: list[str]) -> str:  # noqa: F811
    return beginning(tmp_path_factory.mktemp("beginning"), colours)


@pytest.mark.parametrize("number", range(len(DATA)), ids=[*DATA])
def test_what_was_consumed_is_what_an_unbroken_run_consumes(
    number: int,
    tmp_path: Path,
    colours: list[str],  # noqa: F811
    begin: str,
) -> None:
    overrides = [*data_of(colours, [*DATA][number], tmp_path / "data"), begin]
    for name in ("unbroken", "drill"):
        (tmp_path / name).mkdir()
    expected = unbroken(tmp_path / "unbroken", overrides)
    told: list[str] = []
    assert_same(drill(tmp_path / "drill", overrides, ROUND, random.Random(number), told.append), expected)
    assert len(told) == ROUND + 1
