"""What may change between a checkpoint and the run that goes on from it: `fixed` of each key says it."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import DictConfig, OmegaConf

from neva.config.difference import ABSENT, differences
from neva.config.keys.field import FIXED, MODEL, ORDER, READING, TRAINED, Key, asked
from neva.config.keys.training import Training
from neva.config.schema import walk
from neva.config.show import as_override
from neva.errors import ConfigError

_OWN_RUN = "or begin a run of its own with model.resume_from_checkpoint and model.load_data_state=false"
_REMEDIES = {
    MODEL: "give the old value, or begin a run of its own",
    TRAINED: "give the old value, or begin a run of its own on a .nemo of this one (model.restore_from_path)",
    READING: f"give the old value, {_OWN_RUN}",
    ORDER: f"give the old value, begin an epoch in the new order with model.data.on_change=new_epoch, {_OWN_RUN}",
}


@dataclass(frozen=True)
class Change:
    """A key whose value is not that of the checkpoint."""

    key: str
    before: str
    now: str
    fixed: str | None

    def __str__(self) -> str:
        return f"{self.key}: {self.before} → {self.now}"


def changes(before: DictConfig, now: DictConfig) -> list[Change]:
    """Returns the keys in which two resolved trees differ.

    A key that the older one lacks is one of a newer neva and none of them, except where it is optional: leaving such a
    key out says null, or the first of its choices.
    """
    rules = {path: rule for path, _, rule in walk(Training) if isinstance(rule, Key)}
    found = []
    for path, old, new in differences(before, now):
        rule = _rule(path, rules)
        if rule is None or (old == ABSENT and not rule.optional) or _says_nothing(rule, old, new):
            continue
        found.append(Change(path, old, new, rule.fixed))
    return found


def allowed_changes(before: DictConfig, now: DictConfig) -> list[Change]:
    """Returns what has changed since a checkpoint, all of it allowed.

    Args:
        before: the tree with which it was saved.
        now: that of the run that goes on from it, which says what it takes of it.

    Raises:
        ConfigError: a fixed key has another value; a line for each.
    """
    found = changes(before, now)
    refused = [change for change in found if change.fixed and not _is_free(change.fixed, now)]
    if refused:
        raise ConfigError(
            "\n".join(
                f"{change.key} was {change.before} in the checkpoint and is {change.now}: "
                f"{FIXED[change.fixed or MODEL]}; {_REMEDIES[change.fixed or MODEL]}"
                for change in refused
            )
        )
    return found


def _is_free(fixed: str, now: DictConfig) -> bool:
    if not now.model.load_data_state:
        return fixed in (READING, ORDER)
    return fixed == ORDER and now.model.data.on_change == "new_epoch"


def _rule(path: str, rules: dict[str, Key]) -> Key | None:
    """Returns the rule of a path, or of the mapping that it lies in."""
    while path and path not in rules:
        path = path.rpartition(".")[0]
    return rules.get(path)


def _says_nothing(rule: Key, *values: str) -> bool:
    """Whether each value is what leaving an optional key out says."""
    choices = asked(rule.choices) or (None,)
    defaults = {ABSENT, as_override(None), as_override(choices[0])}
    return rule.optional and {*values} <= defaults


def tree_of(text: str) -> DictConfig:
    """Returns the tree that a checkpoint holds as YAML."""
    tree = OmegaConf.create(text)
    assert isinstance(tree, DictConfig)
    return tree
