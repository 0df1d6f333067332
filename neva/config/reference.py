"""The keys as text: for `--help` and for the reference page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from omegaconf import OmegaConf

from neva.config.compose import CONF_DIR, compose, recipes
from neva.config.keys.field import FIXED, Ignored, Key, Refused
from neva.config.keys.inference import Inference
from neva.config.keys.training import Training
from neva.config.schema import leaf_values, walk
from neva.config.show import as_override, range_text, type_name

PAGE_HEAD = """\
# Keys

Written by `python -m neva.config.reference docs/configuration_keys.md`; a test compares. The values of a recipe
stand in the files of `conf/`; the column *default* is what a YAML without a defaults list gets where it lacks the key.
What is *fixed* stays as it is when a run is resumed ([train.md](train.md#resume)).
How keys are chosen and overridden: [configuration.md](configuration.md).
"""


def recipe_summaries(is_training: bool) -> list[tuple[str, str]]:
    """Returns name and first comment line of each recipe for training or for inference."""
    names = [name for name in recipes() if name.endswith("_inference") != is_training]
    return [(name, _first_comment(CONF_DIR / f"{name}.yaml")) for name in names]


def common_keys(is_training: bool) -> list[tuple[str, str]]:
    """Returns path and one-line documentation of the most used keys."""
    root = Training if is_training else Inference
    return [(path, rule.doc) for path, _, rule in walk(root) if isinstance(rule, Key) and rule.common]


def page() -> str:
    """Returns the reference page in Markdown: keys with an effect, then refused ones, for both purposes."""
    parts = [PAGE_HEAD]
    for title, root in (("Training", Training), ("Inference", Inference)):
        rows = list(walk(root))
        defaults = leaf_values(OmegaConf.to_container(compose(f"base/{title.lower()}", [])))
        parts.append(
            f"\n## {title}: keys with an effect\n\n| key | value | default | what it does |\n|---|---|---|---|"
        )
        parts += [_key_row(path, hint, rule, defaults) for path, hint, rule in rows if isinstance(rule, Key)]
        parts.append(f"\n## {title}: keys that pass without effect\n")
        parts.append("Keys of NeMo 1.x NeVA that change no number here, whatever they say.\n")
        parts.append("| key | why the numbers are the same |\n|---|---|")
        parts += [f"| `{path}` | {_cell(rule.why)} |" for path, _, rule in rows if isinstance(rule, Ignored)]
        parts.append(f"\n## {title}: refused keys\n")
        parts.append(
            "Keys of NeMo 1.x NeVA that may only say what happens anyway: else the numbers would not be the same.\n"
        )
        parts.append("| key | allowed | why |\n|---|---|---|")
        parts += [_refused_row(path, rule) for path, _, rule in rows if isinstance(rule, Refused)]
    return "\n".join(parts) + "\n"


def _key_row(path: str, hint: object, rule: Key, defaults: Mapping[str, object]) -> str:
    kind = type_name(hint)
    if rule.choices:
        text = range_text(rule)
        parts = [text, "null" if "null" in kind and "null" not in text else ""]
    else:
        parts = [kind, range_text(rule)]
    values_by_reason: dict[str, list[str]] = {}
    for value, why in (rule.not_yet or {}).items():
        values_by_reason.setdefault(why, []).append(f"`{as_override(value)}`")
    refused = "".join(f" {', '.join(values)}: {why}." for why, values in values_by_reason.items())
    value = _cell(", ".join(part for part in parts if part))
    fixed = f" *Fixed*: {FIXED[rule.fixed]}." if rule.fixed else ""
    return f"| `{path}` | {value} | {_default(path, rule, defaults)} | {_cell(rule.doc + refused + fixed)} |"


def _default(path: str, rule: Key, defaults: Mapping[str, object]) -> str:
    if defaults.get(path, "???") == "???":
        return "" if rule.optional else "needed"
    return f"`{_cell(as_override(defaults[path]))}`"


def _refused_row(path: str, rule: Refused) -> str:
    return f"| `{path}` | {', '.join(f'`{as_override(off)}`' for off in rule.off)} | {_cell(rule.why)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<image>", "`<image>`")


def _first_comment(path: Path) -> str:
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""


if __name__ == "__main__":
    import sys

    Path(sys.argv[1]).write_text(page(), encoding="utf-8")
