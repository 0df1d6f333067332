"""What a conversion can write, which module of `writers` writes it, and which flags it takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from neva.convert import detect
from neva.convert.detect import SourceKind
from neva.convert.options import Options
from neva.errors import ConfigError

RESTRICTED = {
    "add_tokens": "--add_tokens extends a language model on its way into a .nemo file, nothing else",
    "vocab_multiple": "--pad_vocab_to pads the vocabulary of a llava-hf folder, nothing else",
}
"""Option that only some forms take -> what is said where another form is asked for."""


@dataclass(frozen=True)
class TargetForm:
    """A form of target.

    Attributes:
        words: what messages call it, with `{}` for its path.
        writer: module of `neva.convert.writers`, whose `write(model, target, options)` writes it.
        accepts: the options of `RESTRICTED` that it takes.
    """

    words: str
    writer: str
    accepts: frozenset[str] = frozenset()

    def refuse_others(self, options: Options) -> None:
        """Raises ConfigError when an option is given that this form does not take."""
        for name, refusal in RESTRICTED.items():
            if name not in self.accepts and getattr(options, name) != getattr(Options, name):
                raise ConfigError(refusal)


TEXT_NEMO = TargetForm(".nemo file {}", "nemo", accepts=frozenset({"add_tokens"}))
TEXT_FOLDER = TargetForm("Hugging Face folder {}", "text_hf")
NEMO = TargetForm(".nemo file {} with all parts", "nemo")
ADAPTERS_NEMO = TargetForm(".nemo file {} with adapters", "nemo")
PEFT_FOLDER = TargetForm("peft folder {}", "peft")

LAYOUTS = {
    "llava-hf": TargetForm("llava-hf folder {}", "llava_hf", accepts=frozenset({"vocab_multiple"})),
    "original": TargetForm("original folder {}", "llava_original"),
}
"""Layouts of LLaVA folders by the name that `--layout` takes."""


def target_form(kind: SourceKind, target: Path, options: Options) -> TargetForm:
    """Returns the form that `target` gets: its name, `--layout` and what the source holds decide."""
    is_file = target.suffix == ".nemo"
    if kind not in (detect.ADAPTERS, detect.PEFT):
        if options.merge:
            raise ConfigError(
                f"--merge merges adapters, and the source is a {kind.words} without any: leave it out"
            )
    elif not options.merge:
        if is_file == (kind is detect.ADAPTERS):
            there = "the .nemo of adapters" if is_file else "a peft folder"
            raise ConfigError(
                f"{target} would be {there} that the source is already: give "
                f"{'a folder for peft' if is_file else 'a .nemo'}, or --merge for a model with the adapters in it"
            )
        return ADAPTERS_NEMO if is_file else PEFT_FOLDER
    if kind.has_tower:
        return NEMO if is_file else LAYOUTS[options.layout]
    return TEXT_NEMO if is_file else TEXT_FOLDER
