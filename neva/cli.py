"""The command `neva VERB …`: a verb is a module of `neva.commands` with a SUMMARY line and a `main`."""

from __future__ import annotations

import errno
import importlib
import io
import os
import pkgutil
import select
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from neva import __version__, commands
from neva.config.compose import RECIPE_ENVIRONMENT_VARIABLE
from neva.errors import ConfigError, UserError, print_problems

_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "make room on its disk, or choose another"),
    **dict.fromkeys((errno.EACCES, errno.EPERM), "give this user the permission, or choose another place"),
    errno.EFBIG: "files may be no larger here (ulimit -f)",
    errno.EROFS: "its disk is mounted to be read; choose another place",
    errno.EMFILE: "raise the number of files that may be open (ulimit -n)",
    errno.EIO: "its disk fails",
}
"""What helps where a file system refuses; every other OSError is a traceback."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a verb.

    Returns:
        Exit code: 0 done, 1 something that the run needs is missing or broken, 2 the command or its configuration is
        wrong; above 128 for Ctrl-C, or a reader of the output that has gone, as shells give it.
    """
    _open_output()
    _give_home()
    try:
        code = _run(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        sys.stderr.write("neva: interrupted\n")
        return 128 + signal.SIGINT
    except BrokenPipeError:
        if not _reader_has_gone():
            raise
        return 128 + signal.SIGPIPE


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(_help())
        return 0 if words else ConfigError.exit_code
    if words[0] == "--version":
        print(f"neva {__version__}")
        return 0
    try:
        return _verb(words[0]).main(words[1:])
    except UserError as error:
        print_problems(error)
        return error.exit_code
    except OSError as error:
        if error.errno not in _REMEDIES:
            raise
        place = "" if error.filename is None else f"{error.filename}: "
        sys.stderr.write(f"neva: {place}{error.strerror}; {_REMEDIES[error.errno]}\n")
        return UserError.exit_code


def verbs() -> dict[str, ModuleType]:
    """Imports every verb, by name; none of them imports anything heavy before it runs."""
    modules = {name: _module(name) for name in _names()}
    return {name: module for name, module in modules.items() if hasattr(module, "SUMMARY")}


def _open_output() -> None:
    """Has output go nowhere where it is closed, and characters that it does not know be written as their numbers."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def _give_home() -> None:
    """Says where a user without a home is at home, as Docker does: libraries ask when they are imported."""
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = "/"


def _reader_has_gone() -> bool:
    """Whether nobody reads what is printed; then the rest goes nowhere."""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)
    if not any(event & select.POLLERR for _, event in output.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def _verb(name: str) -> ModuleType:
    """Imports one verb.

    Raises:
        ConfigError: there is none of that name.
    """
    if name in _names():
        module = _module(name)
        if hasattr(module, "SUMMARY"):
            return module
    raise ConfigError(f"no verb {name!r}; there are {', '.join(verbs())}")


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"{commands.__name__}.{name.replace('-', '_')}")


def _names() -> list[str]:
    """Names of the modules of `commands` as verbs are written: verbs, and what verbs have in common."""
    return [module.name.replace("_", "-") for module in pkgutil.iter_modules(commands.__path__)]


def _help() -> str:
    lines = "\n".join(f"  {name:<10} {module.SUMMARY}" for name, module in verbs().items())
    recipe = os.environ.get(RECIPE_ENVIRONMENT_VARIABLE)
    chosen = f"\n{RECIPE_ENVIRONMENT_VARIABLE} is {recipe}.\n" if recipe else ""
    return f"usage: neva VERB …   (neva VERB --help explains one)\n\n{lines}\n{chosen}"
