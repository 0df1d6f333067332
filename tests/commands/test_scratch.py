"""Temporary files of a run go with it; those of a killed one with the next."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from neva.commands.scratch import scratch
from neva.errors import ConfigError

HOLD = "from neva.commands.scratch import scratch\nwith scratch():\n  print('held', flush=True); input()"


@pytest.fixture
def outer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for temporary files; pytest's own has a name that is too long."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.setattr(tempfile, "tempdir", None)
        yield Path(folder)


def holder(outer: Path) -> subprocess.Popen[str]:
    """Another process inside `scratch`."""
    environment = {**os.environ, "TMPDIR": str(outer)}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_run_leaves_nothing(outer: Path) -> None:
    with scratch():
        inside = Path(tempfile.mkdtemp())
        assert inside.parent.parent == outer
        with scratch():  # as a rank does that a run starts
            assert Path(tempfile.gettempdir()) == inside.parent
    assert list(outer.iterdir()) == []
    assert tempfile.gettempdir() == str(outer)


def test_sockets_of_workers_have_room_for_their_names(outer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = outer / ("x" * 60)
    deep.mkdir()
    monkeypatch.setenv("TMPDIR", str(deep))
    with scratch():
        assert tempfile.gettempdir() == str(deep)


def test_what_a_killed_run_left_goes_with_the_next(outer: Path) -> None:
    alive, killed = holder(outer), holder(outer)
    killed.kill()
    killed.communicate()
    kept = [outer / name for name in ("neva-runs", "neva-tmp1", ".neva-tmp", ".neva-tmp123456789")]
    for folder in kept:
        folder.mkdir()  # of a person
    with scratch():
        assert len({*outer.iterdir()} - {*kept}) == 2, "ours and that of the one that lives"
    alive.communicate("\n")
    assert {*outer.iterdir()} == {*kept}


@pytest.mark.parametrize("home", ["", "gone"])
def test_matplotlib_writes_where_the_run_does_if_the_home_cannot_be_written(
    outer: Path, monkeypatch: pytest.MonkeyPatch, home: str
) -> None:
    monkeypatch.setenv("HOME", str(outer / home))
    monkeypatch.delenv("MPLCONFIGDIR", raising=False)
    with scratch():
        assert os.environ.get("MPLCONFIGDIR") == (tempfile.gettempdir() if home else None)
    assert "MPLCONFIGDIR" not in os.environ


def test_without_room_for_temporary_files_a_run_says_so(outer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(outer / "gone")])
    with (
        pytest.raises(ConfigError, match=r"No usable temporary directory found in .*gone.*: make room"),
        scratch(),
    ):
        pass
