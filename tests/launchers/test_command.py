"""Values of any text reach Hydra as they were, and a printed command is one that a shell understands."""

import shlex

import pytest

from neva.config.compose import compose
from neva.errors import ConfigError
from neva.launchers.command import NevaCommand, override, overrides

TEXTS = [
    "/data/a=b, c.json",
    "it's",
    "a\\",
    "a\\'b",
    "null",
    "1e-5",
    "00012",
    "{a: [1]}",
    "日本語/データ",
    'say "hi"',
    "$HOME",
    "True",
    "~/x",
    "#5",
    " lead and trail ",
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_survives_hydra(text: str) -> None:
    assert compose("llava_7b_pretrain", [override("model.data.data_path", text)]).model.data.data_path == text


@pytest.mark.parametrize("text", ["${oc.env:HOME}", "two\nlines"])
def test_text_that_hydra_would_change_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^exp_manager.name would be .*: choose another name$"):
        override("exp_manager.name", text)


def test_other_values_keep_their_kind() -> None:
    values = {"a": True, "b": None, "c": 16, "d": 1e-05, "e": [0.9, 0.999]}
    assert overrides(values) == ["a=true", "b=null", "c=16", "d=1e-05", "e=[0.9,0.999]"]


def test_a_printed_command_reads_back_as_its_words() -> None:
    words = ["--config-name", "x", override("exp_manager.name", "it's \\ me"), "--select_layer", "-1"]
    command = NevaCommand("train", words, {"RANK": None, "NODE_RANK": "1"}, {"FL": "why"}, ["that"])
    effectless, differences, *printed = command.lines()
    assert (effectless, differences) == ("# without effect here: FL: why", "# not the same here: that")
    typed = "\n".join(printed).replace("\\\n", "")
    assert shlex.split(typed) == [
        "env",
        "-u",
        "RANK",
        "NODE_RANK=1",
        "neva",
        "train",
        *words,
    ]
