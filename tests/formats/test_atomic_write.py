"""Targets are whole or absent, also when the process that writes them is killed."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from neva.errors import UserError
from neva.formats.atomic_write import finished_target


@pytest.fixture(scope="module")
def dead() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def leave(target: Path, process: int, *entries: str, host: str | None = None) -> Path:
    """Makes the work folder of another process, with a file in each of its folders."""
    work = target.parent / f".{target.name}.partial-{host or socket.gethostname()}-{process}-ab_1"
    for entry in entries:
        (work / entry).mkdir(parents=True)
        (work / entry / "file").write_text(entry)
    return work


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write(target: Path, overwrite: bool = False) -> None:
    with finished_target(target, overwrite, folder=True) as folder:
        (folder / "file").write_text("mine")


def test_the_work_folder_names_host_and_process(tmp_path: Path) -> None:
    with finished_target(tmp_path / "x.nemo") as path:
        assert path.parent.name.startswith(f".x.nemo.partial-{socket.gethostname()}-{os.getpid()}-")
        path.write_text("mine")
    assert names(tmp_path) == ["x.nemo"]


def test_what_a_dead_process_left_is_removed(tmp_path: Path, dead: int) -> None:
    target = tmp_path / "x"
    leave(target, dead, "new")
    write(target)
    assert names(tmp_path) == ["x"] and (target / "file").read_text() == "mine"


def test_work_that_may_go_on_is_left(tmp_path: Path, dead: int) -> None:
    target = tmp_path / "x"
    work = [
        leave(target, os.getppid(), "new"),
        leave(target, 1, "new"),
        leave(target, dead, "new", host="elsewhere"),
        leave(target, dead, "new", host=f"{socket.gethostname()}-{dead}"),
        leave(tmp_path / "y", dead, "new"),
    ]
    write(target)
    assert names(tmp_path) == sorted(["x", *(path.name for path in work)])


def test_what_a_process_moved_aside_before_it_died_is_put_back(tmp_path: Path, dead: int) -> None:
    target = tmp_path / "x"
    leave(target, dead, "new", "old")
    with pytest.raises(UserError, match="x exists; choose another target"):
        write(target)
    assert names(tmp_path) == ["x"] and (target / "file").read_text() == "old"


def test_what_was_moved_aside_goes_once_its_replacement_is_there(tmp_path: Path, dead: int) -> None:
    target = tmp_path / "x"
    write(target)
    leave(target, dead, "old")
    write(target, overwrite=True)
    assert names(tmp_path) == ["x"] and (target / "file").read_text() == "mine"


def test_a_replacement_that_fails_loses_nothing(tmp_path: Path) -> None:
    target = tmp_path / "x"
    write(target)
    with pytest.raises(FileNotFoundError), finished_target(target, overwrite=True):
        pass  # nothing is written, so that there is nothing to rename
    assert names(tmp_path) == ["x"] and (target / "file").read_text() == "mine"


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt])
def test_an_error_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), finished_target(tmp_path / "x", folder=True) as folder:
        (folder / "file").touch()
        raise error
    assert names(tmp_path) == []


@pytest.mark.parametrize("is_there", [True, False])
def test_what_a_link_leads_to_is_replaced(tmp_path: Path, is_there: bool) -> None:
    disk, link = tmp_path / "disk", tmp_path / "link"
    disk.mkdir()
    link.symlink_to("disk/model")
    if is_there:
        write(disk / "model")
    with finished_target(link, overwrite=True, folder=True) as folder:
        assert folder.parent.parent == disk.resolve()
        (folder / "file").write_text("new")
    assert link.is_symlink() and (disk / "model" / "file").read_text() == "new"
    assert names(disk) == ["model"] and names(tmp_path) == ["disk", "link"]


def test_of_two_that_write_one_target_the_first_stays(tmp_path: Path) -> None:
    target = tmp_path / "x"
    with pytest.raises(UserError, match="x exists; choose another target"), finished_target(target) as late:
        late.write_text("late")
        target.write_text("first")
    assert names(tmp_path) == ["x"] and target.read_text() == "first"
