"""Arrays beside the file they were made from: made once, by one process, and again when the file changes."""

import errno
import fcntl
import multiprocessing
import os
import resource
from pathlib import Path

import numpy as np
import pytest

from neva.errors import DataError
from neva.formats import cached_arrays as cached_arrays_module
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


def test_a_file_system_without_locks_keeps_them_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))  # as Lustre mounted without flock

    monkeypatch.setattr(fcntl, "flock", refuse)
    source = tmp_path / "data.json"
    source.write_text("[]")
    for _ in range(2):
        assert _made(source, tmp_path / "count")["sizes"].tolist() == [2, 2, 2]
    assert (tmp_path / "count").read_text().count("made") == 1


def test_each_of_many_sources_holds_files_open(tmp_path: Path) -> None:
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    cached_arrays_module._allow_many_files.cache_clear()
    here = len(os.listdir("/dev/fd"))  # other tests of this process hold some open
    resource.setrlimit(resource.RLIMIT_NOFILE, (here + 32, most))
    try:
        held = []
        for number in range(64):
            source = tmp_path / f"{number}.json"
            source.write_text("[]")
            held.append(_made(source, tmp_path / "count"))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, most))


def test_where_nothing_can_be_kept_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, used = tmp_path / "data.json", tmp_path / "used"
    source.write_text("[]")
    used.touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(used))
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(DataError, match=r"neither .*Not a directory.*: set XDG_CACHE_HOME to a folder"):
        cache_folder(source)
