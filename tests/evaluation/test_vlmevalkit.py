"""A model through the kit's interface, from a `.nemo` to results: the adapter is real, the kit is `kit_stand_in`."""

import json
import sys
from pathlib import Path

import pytest
import transformers

from neva import cli
from tests.evaluation.kits import NEW_TOKENS, asked, entries, generated

STAND_IN = Path(__file__).parent / "kit_stand_in"
INSTRUCTION = "\nAnswer the question using a single word or phrase."


def evaluate(folder, *data, model="model.nemo", output="out", more=()):
    words = ["evaluate", "--kit", "vlmevalkit", "--kit-path", STAND_IN, "--kit-python", sys.executable]
    words += ["--model", folder / model, "--output", folder / output, "--max-tokens", NEW_TOKENS]
    return cli.main([*map(str, words), "--data", *map(str, data), *more])


def status(folder, entry, output="out"):
    return json.loads((folder / output / entry["files"] / "status.json").read_text())


@pytest.fixture(scope="module")
def answered(folder):
    """The `.nemo` exported to `out/hf`, two files of questions asked and scored."""
    letters = asked(folder, ["A"] * 3, "letters.jsonl", options=["x", "y"])
    assert evaluate(folder, asked(folder, ["?"] * 3), letters) == 0
    return entries(folder)


def test_a_nemo_is_exported_asked_and_scored(folder, answered):
    found = answered["vlmevalkit/mine"]
    ran = status(folder, found)["datasets"]
    assert ran["neva_mine_GQA"]["class"] == "ImageVQADataset"
    assert ran["neva_letters"]["class"] is None
    assert ran["neva_mine_GQA"]["answers"] == generated(folder, INSTRUCTION)
    # where the kit's LLaVA has a prompt of its own, the adapter asks that
    assert ran["neva_letters"]["answers"] == generated(folder, "\nA. x\nB. y\nWhich letter?")
    assert found["questions"] == 3
    assert found["score"] == 0
    assert found["first_prompt"].endswith(f"<image>\nWhat is 0?{INSTRUCTION} ASSISTANT:")
    assert found["versions"]["transformers"] == transformers.__version__


def test_questions_are_asked_as_they_stand_when_that_is_wanted(folder, answered, capsys):
    plain = generated(folder, "")
    assert plain != generated(folder, INSTRUCTION)
    file = asked(folder, [*plain[:2], "?"])
    assert evaluate(folder, file, more=["--plain-prompts", "--force"]) == 0
    again = entries(folder)["vlmevalkit/mine"]
    assert again["score"] == pytest.approx(200 / 3)
    assert again["prompts"] == "the question alone"
    shown = capsys.readouterr().out
    assert "66.67" in shown
    assert f"transformers {transformers.__version__}" in shown


@pytest.mark.usefixtures("answered")
def test_what_fails_within_the_kit_fails_the_command(folder, capsys):
    (folder / "bad.tsv").write_text(
        f"index\tquestion\tanswer\timage_path\n1\tWhat?\tred\t{folder / 'bad.png'}\n"
    )
    (folder / "bad.png").write_text("no picture")
    assert evaluate(folder, folder / "bad.tsv", "NoSuchBenchmark", model="out/hf", output="failed") == 1
    shown = capsys.readouterr().out
    assert "bad: cannot identify image file" in shown
    assert "NoSuchBenchmark: no score: invalid_dataset" in shown
    assert evaluate(folder, "crash", model="out/hf", output="failed") == 1
    assert "out of memory" in (error := capsys.readouterr().err)
    assert "the kit ended with exit code 1; its output is in" in error


def test_a_checkout_and_its_python_are_asked_for(folder, capsys):
    words = ["evaluate", "--kit", "vlmevalkit", "--model", "m.nemo", "--data", "POPE", "--kit-path"]
    assert cli.main([*words, str(folder)]) == 2
    assert "has no run.py; expected a checkout of VLMEvalKit" in capsys.readouterr().err
    assert cli.main([*words, str(STAND_IN), "--kit-python", "no/python"]) == 2
    assert "no Python at no/python to run VLMEvalKit with: make vlmevalkit" in capsys.readouterr().err
