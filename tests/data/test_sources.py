"""The source that reads a path: the first that accepts it, a user's own too."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from neva.data.sources.source import Record, open_source
from neva.errors import DataError
from neva.registry import SOURCES
from neva.templates.template import Turn


@dataclass(frozen=True)
class Lines:
    """A question and an answer a line, with a tab between."""

    path: Path

    def __len__(self) -> int:
        return len(self.path.read_text().splitlines())

    def __getitem__(self, index: int) -> Record:
        question, answer = self.path.read_text().splitlines()[index].split("\t")
        return Record(str(index), [Turn("human", question), Turn("gpt", answer)], [], None)


class LinesSource:
    form = ".tsv (question, tab, answer)"

    def accepts(self, path: Path) -> bool:
        return path.suffix == ".tsv"

    def open(self, path: Path, datasets_exclude: Collection[str]) -> Lines:
        return Lines(path)


@pytest.fixture
def registered() -> Iterator[None]:
    SOURCES.register("lines", LinesSource())
    yield
    del SOURCES._members["lines"]


@pytest.mark.usefixtures("registered")
def test_a_source_from_outside_reads_its_own_suffix(tmp_path: Path) -> None:
    path = tmp_path / "data.tsv"
    path.write_text("what?\tthis\nwho?\tme\n")
    records = open_source(path)
    assert (len(records), records.path) == (2, path)
    assert records[1] == Record("1", [Turn("human", "who?"), Turn("gpt", "me")], [], None)


def test_a_form_that_no_source_reads_is_an_error_with_those_that_exist(tmp_path: Path) -> None:
    (tmp_path / "data.parquet").touch()
    with pytest.raises(
        DataError, match=r"data\.parquet is of no form that neva reads; expected \.json \(a list\)"
    ):
        open_source(tmp_path / "data.parquet")
