"""Arrays beside the file they were made from: made once, by one process, and again when the file changes."""

import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest

from neva.formats.cached_arrays import cache_folder, cached_arrays


def _made(source: Path, count: Path, key: int = 0) -> dict[str, np.ndarray]:
    def build() -> dict[str, np.ndarray]:
        with count.open("a") as file:
            file.write("made\n")
        size = source.stat().st_size
        return {"sizes": np.full(3, size), "none": np.zeros(0, dtype=np.int32)}

    return cached_arrays(source, "lengths", {"key": key}, build)


def test_they_are_made_again_when_the_file_or_the_key_changes(tmp_path: Path) -> None:
    source, count = tmp_path / "data.json", tmp_path / "count"
    source.write_text("[]")
    for _ in range(2):
        arrays = _made(source, count)
    assert arrays["sizes"].tolist() == [2, 2, 2] and arrays["none"].dtype == np.int32
    assert count.read_text().count("made") == 1
    _made(source, count, key=1)
    source.write_text("[1]")
    assert _made(source, count)["sizes"].tolist() == [3, 3, 3]
    assert count.read_text().count("made") == 3
    assert len(list(cache_folder(source).glob("lengths-*"))) == 1


def test_of_several_processes_one_makes_them(tmp_path: Path) -> None:
    source, count = tmp_path / "data.json", tmp_path / "count"
    source.write_text("[]")
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_made, args=(source, count)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert count.read_text().count("made") == 1


def test_beside_a_file_that_cannot_be_written_the_users_cache_holds_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = tmp_path / "data.json"
    source.write_text("[]")
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    assert _made(source, tmp_path / "count")["sizes"].tolist() == [2, 2, 2]
    assert list((tmp_path / "cache").rglob("sizes.npy"))
