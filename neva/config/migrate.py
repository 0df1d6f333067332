"""A complete YAML of NeVA in neva's own form: a defaults list, and the keys that differ from it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from neva.config.compose import CONF_DIR, compose, read
from neva.config.keys.field import Ignored, Refused, Rule
from neva.config.schema import check_keys, leaf_values, leaves, root_of, walk
from neva.config.self_contained import is_self_contained, select
from neva.errors import ConfigError

GROUPS = (
    "trainer",
    "exp_manager",
    "model",
    "model/llm",
    "model/vision_encoder",
    "model/projector",
    "data",
    "optim",
    "stage",
    "parallel",
)
START = "llava_7b_finetune"
"""A recipe that names a file of each group."""

PACKAGE = re.compile(r"^# @package (\S+)")


def migrate(path: Path) -> tuple[str, list[str]]:
    """Returns the recipe that says what a YAML without a defaults list says, and what of it neva refuses.

    Raises:
        ConfigError: the file cannot be read, or has a defaults list already.
    """
    if not path.is_file():
        raise ConfigError(f"no YAML file at {path}")
    if not is_self_contained(path):
        raise ConfigError(f"{path} has a defaults list: it is in neva's form already")
    composed = read(path.stem, [], path.resolve().parent)
    old, problems = composed.tree, _problems(composed.tree)
    rules = {key: rule for key, _, rule in walk(root_of(old))}
    passed = {key: rule for key in leaves(old) if isinstance(rule := _rule(key, rules), (Ignored, Refused))}
    choices = {group: _best(group, old) for group in GROUPS} if "model" in old else {"inference": "default"}
    lines = [
        f"# {path.name} in neva's form",
        *(f"# refused: {problem}" for problem in problems),
        *_defaults(choices),
        "",
        _body(old, [key for key in leaves(old) if key not in passed], choices),
        *_remarks(passed, composed.defaulted, refused={problem.partition("=")[0] for problem in problems}),
    ]
    return "\n".join(lines) + "\n", problems


def _problems(old: DictConfig) -> list[str]:
    try:
        check_keys(old)
    except ConfigError as error:
        return str(error).splitlines()
    return []


def _rule(key: str, rules: Mapping[str, Rule]) -> Rule | None:
    """The rule of a leaf; a mapping is one value of the schema."""
    while key not in rules and "." in key:
        key = key.rpartition(".")[0]
    return rules.get(key)


def _best(group: str, old: DictConfig) -> str:
    """Returns the file of a group that says most of what a tree says, and least else."""
    options = [path.stem for path in sorted((CONF_DIR / group).glob("*.yaml"))]

    def gain(option: str) -> int:
        said = [(select(old, key), value) for key, value in _contents(group, option).items()]
        return sum(1 if then == now else -1 for then, now in said if "${" not in str(now) and now != "???")

    return max(options, key=gain)


def _contents(group: str, option: str) -> dict[str, object]:
    """Dotted path and value of what a file of `conf/` and those of its group that it names say."""
    path = CONF_DIR / group / f"{option}.yaml"
    header = PACKAGE.match(path.read_text(encoding="utf-8"))
    package = f"{header.group(1) if header else group.replace('/', '.')}.".replace("_global_.", "").lstrip(
        "."
    )
    contents = {
        key: value for name in _parents(group, option) for key, value in _contents(group, name).items()
    }
    own = OmegaConf.to_container(OmegaConf.load(path))
    own.pop("defaults", None)  # type: ignore[union-attr, arg-type, call-arg]
    return contents | {package + key: value for key, value in leaf_values(own).items()}


def _parents(group: str, option: str) -> list[str]:
    listed = OmegaConf.select(OmegaConf.load(CONF_DIR / group / f"{option}.yaml"), "defaults")
    return [name for name in listed or [] if isinstance(name, str) and name != "_self_"]


def _defaults(choices: Mapping[str, str]) -> Iterator[str]:
    yield "defaults:"
    yield from (f"  - {group}: {option}" for group, option in choices.items())
    yield "  - _self_"


def _body(old: DictConfig, kept: Iterable[str], choices: Mapping[str, str]) -> str:
    """The keys whose values the chosen files do not give, as they were written."""
    now = compose(
        *("base/inference", [])
        if "inference" in choices
        else (START, [f"{g}={o}" for g, o in choices.items()])
    )
    names = _contents("", START)
    raw, written = leaf_values(OmegaConf.to_container(old)), OmegaConf.create({})
    for key in kept:
        if key in names or select(now, key) != select(old, key):
            OmegaConf.update(written, key, raw[key], force_add=True)
    return OmegaConf.to_yaml(written) if written else ""


def _remarks(passed: Mapping[str, Rule], defaulted: Iterable[str], refused: set[str]) -> Iterator[str]:
    """Comments on what is not written: neva's defaults, what happens anyway, and what has no effect, by reason."""
    if by_default := list(defaulted):
        yield f"# neva's defaults, which the YAML lacked: {', '.join(by_default)}"
    if anyway := [key for key, rule in passed.items() if isinstance(rule, Refused) and key not in refused]:
        yield f"# left out, they said what happens anyway: {', '.join(anyway)}"
    reasons: dict[str, list[str]] = {}
    for key, rule in passed.items():
        if isinstance(rule, Ignored):
            reasons.setdefault(rule.why, []).append(key)
    yield from (f"# left out, {', '.join(keys)}: {why}" for why, keys in reasons.items())
