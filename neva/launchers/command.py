"""A `neva` command that stands for a foreign one: printed with what differs, then run in this process's place."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from neva.config.show import as_override
from neva.errors import ConfigError, UserError

PRINT_ONLY_FLAG = "--print-only"
PRINT_ONLY_VARIABLE = "NEVA_PRINT_ONLY"
_BARE = re.compile(r"[A-Za-z_./][A-Za-z0-9_./+-]*")
_NOT_TEXT = re.compile(r"(true|false|null|nan|inf)", re.IGNORECASE)


class OneSentenceParser(argparse.ArgumentParser):
    """A parser of flags whose complaints are one sentence, without the usage in front."""

    def error(self, message: str) -> NoReturn:
        """Raises ConfigError with `message`."""
        raise ConfigError(f"{message} (--help lists the flags)")


@dataclass
class NevaCommand:
    """One command of `neva`.

    `effectless` names each foreign argument that changes no number here, with the reason; `differences` says what
    will not be the same as in the other system.
    """

    verb: str
    words: list[str]
    environment: dict[str, str | None] = field(default_factory=dict)
    """Variables to set, or with None to unset, for the command."""
    effectless: dict[str, str] = field(default_factory=dict)
    differences: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Returns what is printed: what differs, what has no effect, and the command as one would type it."""
        report = []
        if self.effectless:
            reasons = "; ".join(f"{name}: {why}" for name, why in self.effectless.items())
            report.append(f"# without effect here: {reasons}")
        if self.differences:
            report.append(f"# not the same here: {'; '.join(self.differences)}")
        unset = [name for name, value in self.environment.items() if value is None]
        settings = [
            f"{name}={shlex.quote(value)}" for name, value in self.environment.items() if value is not None
        ]
        prefix = ["env", *(f"-u {name}" for name in unset)] if unset else []
        first = " ".join([*prefix, *settings, "neva", self.verb])
        return [*report, " \\\n    ".join([first, *_flags_with_values(self.words)])]

    def run(self) -> None:
        """Becomes the command: this process is replaced, so that signals reach it."""
        environment = {name: value for name, value in os.environ.items() if name not in self.environment}
        environment |= {name: value for name, value in self.environment.items() if value is not None}
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, "-m", "neva", self.verb, *self.words], environment)


def _flags_with_values(words: Sequence[str]) -> list[str]:
    """Returns `words` quoted for a shell, a flag and the word behind it on one line."""
    lines: list[str] = []
    for before, word in zip(["", *words], words, strict=False):
        if before.startswith("--") and not word.startswith("--"):
            lines[-1] += f" {shlex.quote(word)}"
        else:
            lines.append(shlex.quote(word))
    return lines


def override(key: str, value: object) -> str:
    """Returns `key=value` as Hydra reads it; text that Hydra would take for something else is quoted.

    Raises:
        ConfigError: text that Hydra would fill in, or of several lines.
    """
    if not isinstance(value, str):
        return f"{key}={as_override(value)}".replace(" ", "")
    if "${" in value or "\n" in value:
        raise ConfigError(
            f"{key} would be {value!r}, expected text in one line and without ${{: choose another name"
        )
    if _BARE.fullmatch(value) and not _NOT_TEXT.fullmatch(value):
        return f"{key}={value}"
    escaped = re.sub(r"(\\*)'", lambda match: match[1] * 2 + r"\'", value)
    escaped = re.sub(r"(\\+)$", lambda match: match[1] * 2, escaped)
    return f"{key}='{escaped}'"


def overrides(values: Mapping[str, object]) -> list[str]:
    """Returns each key with its value as an override."""
    return [override(key, value) for key, value in values.items()]


def print_and_run(
    program: str, arguments: Sequence[str], to_command: Callable[[Sequence[str]], NevaCommand]
) -> int:
    """Prints the command that `arguments` stand for and, unless it is only to be printed, runs it.

    Args:
        program: name of the foreign script, for messages.
        arguments: its arguments; `--print-only` may stand anywhere among them.
        to_command: what they stand for.

    Returns:
        0 after printing alone, the exit code of a mistake; does not return from running.
    """
    words = [word for word in arguments if word != PRINT_ONLY_FLAG]
    is_print_only = len(words) < len(arguments) or os.environ.get(PRINT_ONLY_VARIABLE, "0") not in ("", "0")
    try:
        command = to_command(words)
    except UserError as error:
        for problem in str(error).splitlines():
            sys.stderr.write(f"{program}: {problem}\n")
        return error.exit_code
    sys.stdout.write("\n".join(command.lines()) + "\n")
    if not is_print_only:
        command.run()
    return 0


def require(condition: bool, problem: str) -> None:
    """Raises ConfigError with `problem` unless `condition` holds."""
    if not condition:
        raise ConfigError(problem)
