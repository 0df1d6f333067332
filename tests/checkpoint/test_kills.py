"""SIGKILL at every touch of the disk while a checkpoint is written: the one before or the new one is whole."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from megatron.core.dist_checkpointing import ShardedTensor

from neva.checkpoint import index, store
from neva.checkpoint.checksums import damage, incomplete
from neva.distributed import groups
from tests.megatron import warm_processes

TOUCHES = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "shutil.rmtree")


def state(value: float) -> dict[str, Any]:
    return {"w": ShardedTensor.from_rank_offsets("w", torch.full((8, 4), value))}


def save(folder: Path, step: int, in_background: bool) -> None:
    """As the run does it: one is kept."""
    target = folder / f"step={step}"

    def placed() -> None:
        index.link_last(target)
        for old in index.superseded(target, "step", "max", top_k=0, keeps_newest=True):
            store.remove(old)

    extra = {index.ABOUT: index.about(step, {"step": step}, is_ranked=True)}
    if not in_background:
        store.save(target, state(step), {"step": step}, extra, placed=placed)
        return
    saves = store.BackgroundSaves(60)
    saves.save(target, state(step), {"step": step}, extra, placed)
    saves.wait()
    assert saves.finished() is None


def kill_at(number: int, folder: Path) -> None:
    """Has this process die when it is about to touch something below `folder` for the time `number`."""
    left = number

    def heard(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event in TOUCHES and str(folder) in str(arguments[0]):
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1

    sys.addaudithook(heard)


def drill(folder: Path, results: Any) -> None:
    """Saves step 2 beside step 1 again and again, each time by a process that is killed some touches later.

    Tells, for each, whether it saved in the background, the signal that ended it, the steps that look whole afterwards,
    the newest one's content, and what is left when a next save has cleared up. The process that forks has no threads.
    """
    warnings.simplefilter("ignore", FutureWarning)  # of Megatron, in the processes that load
    run(lambda: save(folder / "begin", 1, False))
    for in_background, stride in ((False, 2), (True, 9)):
        for number in itertools.count(0, stride):
            place = folder / f"{in_background}{number}"
            shutil.copytree(folder / "begin", place, symlinks=True)
            ended_by = run(partial(killed_save, number, place, in_background))
            whole = [one for one in index.checkpoints(place) if incomplete(one.path) is None]
            told = folder / f"told{number}"
            looked = run(partial(look, whole[0].path, told))
            left = sorted(path.name for path in place.iterdir() if not path.name.startswith(".step"))
            steps = [one.step for one in whole]
            results.put((in_background, ended_by, looked, steps, told.read_text(), left))
            if ended_by == 0:
                break
    results.put(None)


def killed_save(number: int, place: Path, in_background: bool) -> None:
    kill_at(number, place)
    save(place, 2, in_background)


def look(path: Path, told: Path) -> None:
    loaded = store.load(path, state(0.0))
    told.write_text(str((damage(path), float(loaded["w"].mean()), loaded[store.LIGHTNING_STATE]["step"])))
    store.clear_unfinished(path.parent)
    save(path.parent, 3, False)


def run(action: Any) -> int:
    """Runs `action` in a process of its own; returns the signal that ended it, 0 for none, -1 for an error."""
    process = os.fork()
    if process == 0:
        try:
            groups.init_process_group(rank=0, world_size=1)
            action()
            os._exit(0)
        except BaseException as error:
            sys.stderr.write(f"{error!r}\n")
            os._exit(1)
    _, status = os.waitpid(process, 0)
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.WEXITSTATUS(status)


def test_a_kill_at_any_touch_of_the_disk_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    context = warm_processes()
    results = context.Queue()
    process = context.Process(target=drill, args=(tmp_path, results))
    process.start()
    told = list(iter(lambda: results.get(timeout=200), None))
    process.join()
    for is_background, kills in itertools.groupby(told, key=lambda one: one[0]):
        found = [one[1:] for one in kills]
        assert len(found) > (3 if is_background else 12)
        for ended_by, looked, whole, loaded, left in found:
            assert ended_by in (signal.SIGKILL, 0) and looked == 0
            assert whole in ([1], [2, 1], [2]) and loaded == str((None, float(whole[0]), whole[0]))
            assert left == ["step=3", "step=3-last"]
        assert found[0][2] == [1] and found[-1][2] == [2]
