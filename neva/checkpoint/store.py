"""Folders of training checkpoints: Megatron's distributed checkpoints, readable in any layout."""

from __future__ import annotations

import contextlib
import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.validation import StrictHandling
from torch import Tensor

from neva.checkpoint.checksums import first_whole, write_checksums
from neva.checkpoint.disk import agreed, needed_room, sync
from neva.checkpoint.index import UNFINISHED
from neva.checkpoint.writer import StateWriter

logger = logging.getLogger(__name__)

LIGHTNING_STATE = "lightning"
"""Where a checkpoint keeps what is no sharded tensor."""

_LONG_WAIT_S = 1.0


class _Save:
    """One checkpoint on its way to the disk. Made by every rank, at the same time.

    Raises:
        CheckpointError: the disk has no room for it, or takes no folder; the same on every rank.
    """

    def __init__(self, folder: Path, state: dict[str, Any], common: Mapping[str, Any]) -> None:
        self.folder = folder
        self.temporary = folder.with_name(UNFINISHED) / folder.name
        self.needed = needed_room(state, folder)
        agreed(self._begin, self.folder, self.needed)
        self.writer = StateWriter({**state, LIGHTNING_STATE: dict(common)}, self.temporary)

    def finish(
        self,
        extra: Mapping[str, str] | None,
        placed: Callable[[], None] | None,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        """Writes everything and moves it to its place when it is whole and on the disk; then `placed` is called.

        Args:
            extra: further files, by their names; None: a checkpoint that is not kept, which needs no checksums.
            placed: called by rank 0.
            group: of all ranks, for what they tell each other.

        Raises:
            CheckpointError: the disk does not take it; the same on every rank. What `folder` held is untouched.
        """
        place = (self.folder, self.needed, group)
        try:
            results = agreed(self.writer.write, *place)
            agreed(lambda: _on_first(self.writer.finish, results, extra or {}), *place)
            if extra is not None:
                write_checksums(self.temporary, *place)
            agreed(lambda: _on_first(self._move, placed), *place)
        except BaseException:
            # on a full disk nobody could save anything beside it
            _on_first(shutil.rmtree, self.temporary, True)
            _on_first(_drop_if_empty, self.temporary.parent)
            raise

    def _begin(self) -> None:
        if dist.get_rank() == 0:
            shutil.rmtree(self.temporary, ignore_errors=True)
            self.temporary.mkdir(parents=True)

    def _move(self, placed: Callable[[], None] | None) -> None:
        remove(self.folder)
        self.temporary.rename(self.folder)
        sync(self.folder.parent)
        if placed is not None:
            placed()
        _drop_if_empty(self.temporary.parent)


def save(
    folder: Path,
    state: dict[str, Any],
    common: Mapping[str, Any],
    extra: Mapping[str, str] | None = None,
    is_kept: bool = True,
    placed: Callable[[], None] | None = None,
) -> None:
    """Writes a checkpoint aside and moves it to `folder` when it is complete. Called by every rank.

    Args:
        folder: the checkpoint.
        state: sharded tensors.
        common: what is the same on all ranks.
        extra: further files, by their names.
        is_kept: one that is not kept needs no checksums.
        placed: called by rank 0 when the checkpoint is in its place.

    Raises:
        CheckpointError: the disk is full, or does not take it; what `folder` held before is untouched. The same on
            every rank.
    """
    _Save(folder, state, common).finish((extra or {}) if is_kept else None, placed)


class BackgroundSaves:
    """Writes checkpoints by a thread, one at a time, while training goes on. Made by every rank, at the same time.

    A save holds training up for as long as it takes to copy the state of this rank; the copy stays for the next one.
    The threads of all ranks talk to each other in a group of their own, so that they and training never mix.
    """

    def __init__(self, timeout_s: float) -> None:
        self.group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))
        self.buffers: dict[Any, Tensor] = {}
        self.thread: threading.Thread | None = None
        self.error: Exception | None = None

    def save(
        self,
        folder: Path,
        state: dict[str, Any],
        common: Mapping[str, Any],
        extra: Mapping[str, str] | None = None,
        placed: Callable[[], None] | None = None,
    ) -> None:
        """Begins to write a checkpoint, when the one before is written; see `save`.

        Raises:
            CheckpointError: as `save`, before the thread has begun; what goes wrong behind that is told by `finished`.
        """
        self.wait()
        one = _Save(folder, state, common)
        one.writer.copy(self.buffers)

        def write() -> None:
            try:
                one.finish(extra or {}, placed, self.group)
            except Exception as error:
                self.error = error

        self.thread = threading.Thread(target=write, name="checkpoint", daemon=True)
        self.thread.start()

    def finished(self) -> Exception | None:
        """Returns what went wrong with a checkpoint since this was last asked; None: nothing that is known yet."""
        if self.thread is not None and self.thread.is_alive():
            return None
        self.thread = None
        error, self.error = self.error, None
        return error

    def wait(self, timeout_s: float | None = None) -> None:
        """Waits for the checkpoint that is being written, if any."""
        start = time.monotonic()
        if self.thread is not None:
            self.thread.join(timeout_s)
        if (seconds := time.monotonic() - start) > _LONG_WAIT_S and dist.get_rank() == 0:
            logger.info("waited %.1f s for the checkpoint that was still being written", seconds)


def remove(folder: Path) -> None:
    """Deletes a checkpoint, moved aside first: half of one must not be found. Called by one rank."""
    if folder.exists():
        aside = folder.with_name(UNFINISHED)
        aside.mkdir(exist_ok=True)
        outdated = aside / f"{folder.name}.outdated"
        shutil.rmtree(outdated, ignore_errors=True)
        folder.rename(outdated)
        shutil.rmtree(outdated, ignore_errors=True)
        _drop_if_empty(aside)


def clear_unfinished(folder: Path) -> None:
    """Removes what interrupted saves have left beside the checkpoints of `folder`. Called by one rank, before saves."""
    shutil.rmtree(folder / UNFINISHED, ignore_errors=True)


@contextlib.contextmanager
def removed_on_failure(folder: Path) -> Iterator[None]:
    """Removes what an error has left half written."""
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def load(folder: Path, state: dict[str, Any], earlier: Sequence[Path] = ()) -> dict[str, Any]:
    """Reads a checkpoint into the layout of `state`; every tensor asked for must be there and fit.

    Args:
        folder: the checkpoint.
        state: sharded tensors that say what this rank holds.
        earlier: those that may be read instead where a file of `folder` is not what was written, newest first.

    Returns:
        The tree with tensors, and what was saved as common under `LIGHTNING_STATE`.

    Raises:
        CheckpointError: none of them is what was written.
    """
    return read(first_whole(folder, earlier), state)


def read(folder: Path, state: dict[str, Any]) -> dict[str, Any]:
    """The same for a checkpoint that is known to be whole."""
    return dist_checkpointing.load(state, str(folder), strict=StrictHandling.RAISE_UNEXPECTED)


def _on_first(action: Callable[..., None], *arguments: Any) -> None:
    if dist.get_rank() == 0:
        action(*arguments)


def _drop_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):  # a checkpoint is being written there
        folder.rmdir()
