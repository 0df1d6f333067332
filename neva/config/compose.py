"""Hydra's composition of `conf/` into one tree."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from neva.config.schema import leaves, text_keys
from neva.config.self_contained import is_self_contained, on_base
from neva.errors import ConfigError

CONF_DIR = Path(__file__).resolve().parent.parent / "conf"
"""The Hydra tree: a link to `conf/` in a clone, a copy of it in an installed package."""

RECIPE_ENVIRONMENT_VARIABLE = "NEMO_CONFIG"

_SYNTAX = r"""[^,\[\]{}()'"$\\]*"""
_UNREADABLE = re.compile(rf"""{_SYNTAX}[^\w\s/+.%*@?|:,\[\]{{}}()'"$\\-]{_SYNTAX}""", re.ASCII)
"""Hydra reads no value with `=`, `~`, `&`, or a letter beyond ASCII that is not quoted: quotes change nothing else."""

_NUMBER = re.compile(r"[+-]?[0-9][0-9_.]*([eE][+-]?[0-9_]+)?")
"""What Hydra reads as a number, and some text."""

QUOTING = """write key=value, and quote a value with one of , [ ] { } ( ) ' twice: 'key="a, b"'"""


def register_resolvers() -> None:
    """Makes `${multiply:a,b}` known to OmegaConf, as NeMo's YAML files use it."""
    OmegaConf.register_new_resolver("multiply", lambda x, y: x * y, replace=True)


def recipes(conf_dir: Path = CONF_DIR) -> list[str]:
    """Returns the names of all recipes: the YAML files at the top of the tree."""
    return sorted(path.stem for path in conf_dir.glob("*.yaml"))


def recipe_name(config_name: str | None, conf_dir: Path = CONF_DIR) -> str:
    """Returns `config_name`, else the environment variable NEMO_CONFIG.

    Raises:
        ConfigError: neither names a recipe of `conf_dir`.
    """
    name = config_name or os.environ.get(RECIPE_ENVIRONMENT_VARIABLE)
    if not name:
        raise ConfigError(
            f"no recipe chosen: give --config-name NAME or set {RECIPE_ENVIRONMENT_VARIABLE}; "
            f"recipes: {', '.join(recipes(conf_dir))}"
        )
    name = name.removesuffix(".yaml")
    own, known = Path(f"{name}.yaml"), recipes(conf_dir)
    if own.is_absolute() or not (conf_dir / own).is_file():
        if own.is_file():
            raise ConfigError(
                f"{own} is a file, expected the name of one: give --config-dir {own.parent} --config-name {own.stem}"
            )
        nearest = "".join(f"; nearest: {name}" for name in get_close_matches(name, known, n=1))
        raise ConfigError(f"no recipe {name!r} in {conf_dir}{nearest}; recipes: {', '.join(known)}")
    return name


def is_group(key: str, conf_dir: Path = CONF_DIR) -> bool:
    """Whether an override of `key` chooses a file of a config group (`data=…`, `model/llm=…`)."""
    group = key.partition("@")[0]
    return any((folder / group).is_dir() for folder in (conf_dir, CONF_DIR))


def to_force_add(override: str, conf_dir: Path = CONF_DIR) -> str:
    """Returns `a.b=c` or `+a.b=c` as `++a.b=c`: an unknown key is for our schema, which knows the nearest names.

    Group choices, deletions (`~a.b`) and Hydra's own keys are returned as they are.
    """
    override = with_quotes(override)
    key, equals, _ = override.partition("=")
    bare = key.lstrip("+")
    if not equals or key.startswith(("~", "++")) or bare.startswith("hydra") or is_group(bare, conf_dir):
        return override
    return f"++{override.lstrip('+')}"


def with_quotes(override: str) -> str:
    """Returns the override with quotes around a plain value that is text and that Hydra would not take as such.

    That is one of which it reads nothing, as NeMo's names of checkpoints with their `=`, or a path in Japanese, and a
    number where the key is text: a run that is named by the number of its job.
    """
    key, _, value = override.partition("=")
    is_number = key.lstrip("+") in text_keys() and _NUMBER.fullmatch(value)
    return f'{key}="{value}"' if is_number or _UNREADABLE.fullmatch(value) else override


@dataclass(frozen=True)
class Composed:
    """A tree as Hydra gives it, unchecked and unresolved, and where its values come from.

    `given`: dotted keys that the user wrote, in overrides or in a YAML of their own; None: all of them.
    `defaulted`: `key=value` of what a YAML without a defaults list lacks.
    """

    tree: DictConfig
    given: frozenset[str] | None
    defaulted: tuple[str, ...] = ()


def compose(config_name: str | None, overrides: Sequence[str], conf_dir: Path = CONF_DIR) -> DictConfig:
    """Returns the tree of recipe `config_name` (else of NEMO_CONFIG) with `overrides`, unchecked and unresolved.

    Raises:
        ConfigError: no such recipe, or an override that Hydra cannot read.
    """
    return read(config_name, overrides, conf_dir).tree


def read(config_name: str | None, overrides: Sequence[str], conf_dir: Path = CONF_DIR) -> Composed:
    """As `compose`, and tells what the user gave."""
    name = recipe_name(config_name, conf_dir)
    is_whole = is_self_contained(conf_dir / f"{name}.yaml")
    tree = _composed(name, [to_force_add(override, conf_dir) for override in overrides], conf_dir)
    if is_whole:
        merged, defaulted = on_base(tree, lambda base: _composed(base, [], CONF_DIR))
        return Composed(merged, frozenset(leaves(tree)), tuple(defaulted))
    if conf_dir.samefile(CONF_DIR):
        return Composed(tree, frozenset(override.lstrip("+").partition("=")[0] for override in overrides))
    return Composed(tree, None)


def _composed(name: str, overrides: Sequence[str], conf_dir: Path) -> DictConfig:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import OverrideParseException

    register_resolvers()
    try:
        with initialize_config_dir(config_dir=str(conf_dir), version_base="1.3"), warnings.catch_warnings():
            # without it a file's own values come last, as one expects
            warnings.filterwarnings("ignore", r".*Defaults list is missing `_self_`")
            return hydra_compose(name, overrides=[*search_path(conf_dir), *overrides])
    except OverrideParseException as error:
        found = f"cannot read {error.override.lstrip('+')!r} ({_first_sentence(error.message)})"
        raise ConfigError(f"{found}: {QUOTING}") from error
    except RecursionError as error:
        raise ConfigError(f"{name}: its defaults list leads back to itself: take that entry out") from error
    except Exception as error:  # Hydra's, OmegaConf's, and plain ones for a group that is chosen by a number
        raise ConfigError(_first_sentence(str(error))) from error


def search_path(conf_dir: Path) -> list[str]:
    """Returns the override that lets a tree of one's own name files and groups of `conf/`."""
    return [] if conf_dir.samefile(CONF_DIR) else [f"hydra.searchpath=[file://{CONF_DIR}]"]


def _first_sentence(message: str) -> str:
    """Hydra's message in one line, without its search path and links."""
    return re.split(r" (?:Config search path|See https:)", " ".join(message.split()))[0]
