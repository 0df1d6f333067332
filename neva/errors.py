"""What is the user's to mend: one base, which the command line prints as one sentence. All else is a traceback."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(ValueError):
    """Something that the user can mend: what was found, what was expected, what to change.

    Raised anywhere, in a loader worker or on another rank too, it ends the command as one sentence and a non-zero
    status. Several problems of one kind are reported together, a line each.
    """

    exit_code = 1
    is_printed = False
    """Whether this process has printed it, or leaves that to another one of the same machine."""


class ConfigError(UserError):
    """A key, a value or a command that cannot be used."""

    exit_code = 2


class DataError(UserError):
    """A file of records, prompts or answers, or a tokenizer, that cannot be used."""


class SampleError(DataError):
    """A record cannot become a sample: broken file, malformed conversation, nothing left to learn from.

    What `model.data.on_error=skip` may pass over.

    Args:
        message: the sentence.
        kind: what is wrong, in two words; records are counted by it.
    """

    def __init__(self, message: str, kind: str = "malformed record") -> None:
        super().__init__(message)
        self.kind = kind

    record_id: str | None = None
    place = ""
    """Of the record in its file, where that is known."""


class OddRecordError(SampleError):
    """A record is read by LLaVA, but not as it is written, and `model.data.odd_records` does not want that."""


class DroppedError(SampleError):
    """A record that is passed over even with `on_error=fail`, because a key says so for its kind.

    That is too long with `model.data.truncation=drop`, or without a label with `model.data.no_label=drop`.
    """


class CheckpointError(UserError):
    """A `.nemo`, a training checkpoint or a folder of weights that cannot be read, does not fit, or is not proven."""


class LaunchError(ConfigError):
    """An environment or a command that does not bring the processes of a run together to run the same thing."""


class RankError(UserError):
    """What the user can mend, found by one process of the run and raised by all of them.

    Args:
        message: names the rank and its host in each line.
        exit_code: of the error that the rank found.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message, exit_code)
        self.message, self.exit_code = message, exit_code

    def __str__(self) -> str:
        return self.message


@contextmanager
def naming(place: str | Path) -> Iterator[None]:
    """Puts `place`, a file or folder, before the sentence of a user error that does not name it."""
    try:
        yield
    except UserError as error:
        if str(place) not in str(error):
            error.args = (f"{place}: {error}", *error.args[1:])
        raise


@contextmanager
def naming_file(path: str | Path) -> Iterator[None]:
    """Has an error of the operating system that names no file, as one of writing does not, name `path`."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def reason(error: BaseException, longest: int = 200) -> str:
    """Returns what an exception of another package says, in one line, cut where it is long."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= longest else f"{text[:longest]}…"


def print_problems(error: UserError) -> None:
    """Prints `error` on stderr, a line for each problem, unless that is done."""
    if not error.is_printed:
        sys.stderr.writelines(f"neva: {problem}\n" for problem in str(error).splitlines())
        sys.stderr.flush()
    error.is_printed = True
