"""Temporary files of a run go with it; those of a killed one with the next."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from neva.commands.scratch import scratch

HOLD = "from neva.commands.scratch import scratch\nwith scratch():\n  print('held', flush=True); input()"


@pytest.fixture
def outer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


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


def test_what_a_killed_run_left_goes_with_the_next(outer: Path) -> None:
    alive, killed = holder(outer), holder(outer)
    killed.kill()
    killed.communicate()
    (outer / "neva-file").touch()
    with scratch():
        assert len([path for path in outer.iterdir() if path.is_dir()]) == 2, (
            "ours and that of the one that lives"
        )
    alive.communicate("\n")
    assert [path.name for path in outer.iterdir()] == ["neva-file"]
