"""`neva data ACTION …`: training data looked at or made; an action is a module of `neva.commands.data_actions`."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
from collections.abc import Sequence
from types import ModuleType

from neva.commands import data_actions
from neva.errors import ConfigError

SUMMARY = "look at training data, or make it"


def main(arguments: Sequence[str]) -> int:
    """Runs an action. Returns its exit code; ConfigError where there is none of that name."""
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(f"{_help()}\n")
        return 0 if arguments else ConfigError.exit_code
    return _action(arguments[0]).main(arguments[1:])


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Returns the flags of the action that the first of `arguments` names."""
    return _action(arguments[0]).parse(arguments[1:])


def _action(name: str) -> ModuleType:
    if name not in _names():
        raise ConfigError(f"neva data {name}: no such action; there are {', '.join(_names())}")
    return importlib.import_module(f"{data_actions.__name__}.{name}")


def _names() -> list[str]:
    return [module.name for module in pkgutil.iter_modules(data_actions.__path__)]


def _help() -> str:
    lines = "\n".join(f"  {name:<8} {_action(name).SUMMARY}" for name in _names())
    return f"usage: neva data ACTION …   (neva data ACTION --help explains one)\n\n{lines}\n"
