"""Checks a configuration tree against the keys that exist."""

from __future__ import annotations

import difflib
import functools
import math
import re
import types
import typing
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from neva.config.keys.field import Ignored, Key, Refused, Rule, asked
from neva.config.keys.inference import Inference
from neva.config.keys.synonyms import OURS
from neva.config.keys.training import Training
from neva.config.show import as_override, range_text, type_name
from neva.errors import ConfigError

NULLABLE = ("rope_scaling", "window_size", "moe_shared_expert_intermediate_size")
"""Language keys whose null says that the model has no such thing."""

REFERENCE = re.compile(r"^\$\{([\w.]+)\}$")


_BARE = re.compile(r"true|false|null|[+-]?[0-9.]+(e[+-]?[0-9]+)?", re.IGNORECASE)
"""Text that would be no text without its quotes."""


def root_of(cfg: DictConfig) -> type:
    """Returns `Training` or `Inference`: a tree that names a `neva_model_file` is one for inference."""
    return Inference if "neva_model_file" in cfg else Training


def check_purpose(cfg: DictConfig, wanted: type) -> None:
    """Raises ConfigError when a tree for inference was chosen to train, or one for training to infer."""
    if root_of(cfg) is not wanted:
        is_for, verb = ("training", "train") if wanted is Inference else ("inference", "infer")
        raise ConfigError(
            f"the recipe is one for {is_for}: use `neva {verb}`, or choose another with --config-name or NEMO_CONFIG"
        )


def walk(section: type, prefix: str = "") -> Iterator[tuple[str, Any, Rule]]:
    """Yields dotted path, type and rule of every key below `section`."""
    hints = typing.get_type_hints(section)
    for field in fields(section):
        path, hint = prefix + field.name, hints[field.name]
        if is_dataclass(hint):
            yield from walk(typing.cast(type, hint), path + ".")
        else:
            yield path, hint, field.metadata["rule"]


@functools.cache
def text_keys() -> frozenset[str]:
    """Returns the dotted paths of the keys whose values are text and never a number."""
    typed = [(path, hint, rule) for root in (Training, Inference) for path, hint, rule in walk(root)]
    return frozenset(
        path for path, hint, rule in typed if isinstance(rule, Key) and hint in (str, str | None)
    )


def check_keys(cfg: DictConfig) -> None:
    """Raises when a key is unknown, missing or refused, or a value has the wrong type or lies out of range.

    Raises:
        ConfigError: all problems of the tree, a line each.
    """
    root = root_of(cfg)
    rules = {path: rule for path, _, rule in walk(root)}
    written = OmegaConf.to_container(cfg)
    awaiting = [path for path, value in _leaves("", written) if value == "???"]
    if awaiting:
        raise ConfigError("\n".join(f"{path} needs a value: {_doc(rules.get(path))}" for path in awaiting))
    try:
        tree = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(_unresolved(error, cfg)) from error
    known = [path for path, rule in rules.items() if isinstance(rule, Key)]
    known += [path for path in rules if path not in known]
    problems = list(_section(root, tree, written, "", known))
    if problems:
        raise ConfigError("\n".join(problems))


def _unresolved(error: OmegaConfBaseException, cfg: DictConfig) -> str:
    """Returns the sentence on a value that refers to nothing."""
    said = str(error).splitlines()[0].removeprefix("KeyError raised while resolving interpolation: ")
    if error.full_key is None:
        return said
    written = OmegaConf.to_container(OmegaConf.masked_copy(cfg, [error.full_key.partition(".")[0]]))
    return f"{error.full_key}={leaf_values(written).get(error.full_key, '')}: {said}"


def ignored_keys(cfg: DictConfig) -> list[str]:
    """Returns the keys of a tree that pass without effect."""
    written = leaves(cfg)
    passing = [path for path, _, rule in walk(root_of(cfg)) if isinstance(rule, Ignored)]
    return [path for path in passing if any(f"{leaf}.".startswith(f"{path}.") for leaf in written)]


def leaves(cfg: DictConfig) -> list[str]:
    """Returns the dotted path of every value that stands in a tree."""
    return [*leaf_values(OmegaConf.to_container(cfg))]


def leaf_values(tree: Any) -> dict[str, Any]:
    """Returns dotted path and value of everything in a tree, an empty section being a value."""
    return dict(_leaves("", tree)) if tree else {}


def _section(section: type, values: Any, written: Any, prefix: str, known: list[str]) -> Iterator[str]:
    """Yields the problems of one section; `written` is what stands in the YAML, interpolations included."""
    if not isinstance(values, dict):
        yield f"{prefix[:-1]}={as_override(values)}: expected a section with keys of its own, not a value"
        return
    written = written if isinstance(written, dict) else values
    hints = typing.get_type_hints(section)
    names = {field.name: field for field in fields(section)}
    for name, value in values.items():
        path = f"{prefix}{name}"
        if "." in str(name):
            yield f"the YAML has {name!r} as one key: write a section for each word, or give it on the command line"
        elif name not in names:
            for unknown, _ in _leaves(path + ".", value):
                yield f"unknown key {unknown}; nearest: {', '.join(nearest(unknown, known))}"
        elif (below := _keys_below(hints[name], value)) is not None:
            yield from _section(below, value, written[name], path + ".", known)
        elif not _refers_to_known(written[name], known):
            yield from value_problems(path, value, hints[name], names[name].metadata["rule"])
    for name, field in names.items():
        if name not in values and _needed(hints[name], field.metadata.get("rule")):
            yield f"missing key {prefix}{name}: add it to the recipe"


def _keys_below(hint: Any, value: Any) -> type | None:
    """Returns the keys that a value has below it; None where it is one itself, as null is for an optional section."""
    if is_dataclass(hint):
        return typing.cast(type, hint)
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) and value is not None else ()
    return next((typing.cast(type, option) for option in options if is_dataclass(option)), None)


def _leaves(prefix: str, values: Any) -> Iterator[tuple[str, Any]]:
    """Yields dotted path and value of everything in a tree, an empty section being a value."""
    if isinstance(values, dict) and values:
        for name, below in values.items():
            yield from _leaves(f"{prefix}{name}.", below)
    else:
        yield prefix[:-1], values


def _refers_to_known(written: Any, known: list[str]) -> bool:
    """Whether a value is `${another.key}`, which is judged where it stands."""
    reference = REFERENCE.match(written) if isinstance(written, str) else None
    return reference is not None and reference.group(1) in known


def _needed(hint: Any, rule: Rule | None) -> bool:
    """Whether a key must be in the tree; a section must when one of its keys must."""
    if is_dataclass(hint):
        return any(_needed(None, rule) for _, _, rule in walk(typing.cast(type, hint)))
    return isinstance(rule, Key) and not rule.optional


def value_problems(path: str, value: Any, hint: Any, rule: Rule) -> Iterator[str]:
    """Yields what is wrong with the value of one key, by its type and rule."""
    if isinstance(rule, Ignored):
        if rule.choices is not None and value not in rule.choices:
            allowed = ", ".join(as_override(choice) for choice in rule.choices)
            yield f"{path}={as_override(value)}: must be one of {allowed}"
    elif isinstance(rule, Refused):
        if not any(_same(value, off) for off in rule.off):
            remedy = " or ".join(as_override(off) for off in rule.off)
            yield f"{path}={as_override(value)} is refused: {rule.why}; leave the key out (or at {remedy})"
    elif not _has_type(value, hint):
        yield f"{path}={as_override(value)}: expected {type_name(hint)}{_of_quotes(value, hint)}"
    elif value is not None and not _in_range(value, rule):
        if rule.not_yet is not None and value in rule.not_yet:
            yield f"{path}={as_override(value)} is refused: {rule.not_yet[value]}"
        elif rule.elsewhere is not None and value in (names := rule.elsewhere()):
            yield f"{path}={as_override(value)}: neva calls it {names[value]}"
        else:
            yield f"{path}={as_override(value)}: must be {range_text(rule)}"


def _of_quotes(value: Any, hint: Any) -> str:
    """Returns what to do where a value has the wrong type for being in quotes, or for not being."""
    if isinstance(value, str) and _BARE.fullmatch(value):
        return ", found text: leave out its quotes; a variable's value is text too, ${oc.decode:${oc.env:NAME}} is not"
    return ": put it in quotes" if isinstance(value, (int, float)) and _has_type(str(value), hint) else ""


def _doc(rule: Rule | None) -> str:
    return rule.doc if isinstance(rule, Key) else "it is ??? in the recipe"


def _same(value: Any, off: Any) -> bool:
    """Whether they are equal, and not a number in a boolean's place: `False` is not 0."""
    return value == off and isinstance(value, bool) == isinstance(off, bool)


def _has_type(value: Any, hint: Any) -> bool:
    if isinstance(hint, types.UnionType):
        return any(_has_type(value, option) for option in typing.get_args(hint))
    if isinstance(value, float) and not math.isfinite(value):
        return False
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is list:
        return isinstance(value, list) and all(_has_type(item, arguments[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)


def _in_range(value: Any, rule: Key) -> bool:
    if rule.length is not None and len(value) != rule.length:
        return False
    if rule.pattern is not None and not re.search(asked(rule.pattern), value):
        return False
    items, choices = value if isinstance(value, list) else [value], asked(rule.choices)
    return all(
        (choices is None or item in choices)
        and (rule.low is None or item >= rule.low)
        and (rule.high is None or item <= rule.high)
        and (rule.above is None or item > rule.above)
        and (rule.below is None or item < rule.below)
        for item in items
    )


def nearest(path: str, known: list[str]) -> list[str]:
    """Returns up to three known paths nearest to an unknown one, those with the same last name first.

    A word of another trainer has one that means the same.
    """
    leaf = path.rpartition(".")[2]
    same_leaf = sorted((candidate for candidate in known if candidate.rpartition(".")[2] == leaf), key=len)
    if not same_leaf and (ours := OURS.get(leaf)) in known:
        return [ours]
    close = difflib.get_close_matches(path, known, n=3, cutoff=0.8)
    return list(dict.fromkeys(same_leaf + close))[:3] or difflib.get_close_matches(
        path, known, n=1, cutoff=0.0
    )
