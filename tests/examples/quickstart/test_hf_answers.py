"""transformers answers the quickstart's questions from an export: in batches as one by one, with neva's prompts."""

import json
import subprocess
import sys

import pytest
from transformers import AutoProcessor

from examples.quickstart import hf_answers
from neva.commands.convert import main
from neva.registry import TEMPLATES
from neva.templates.template import Turn, render
from tests.conftest import random_image
from tests.convert.llava import llava_nemo

pytestmark = pytest.mark.usefixtures("megatron")
QUESTIONS = ["what?", "is there a red circle in the image?", "colour?", "is it blue?"]


def rows():
    return [
        {"prompt": f"<image>\n{question}", "image": f"{number}.png", "truth": "yes"}
        for number, question in enumerate(QUESTIONS)
    ]


@pytest.fixture
def export(tmp_path):
    for number in range(len(QUESTIONS)):
        random_image(40, 28, seed=number).save(tmp_path / f"{number}.png")
    assert main([str(llava_nemo(tmp_path, system="")), str(tmp_path / "hf")]) == 0
    return tmp_path / "hf"


def test_batches_answer_as_single_questions_do(export, tmp_path):
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    output = tmp_path / "answers.json"
    files = [export, tmp_path / "test.jsonl", tmp_path, 3, output]
    command = [sys.executable, "-W", "ignore", hf_answers.__file__, *map(str, files)]
    subprocess.run(command, check=True)
    single = [hf_answers.answers(str(export), [row], tmp_path)[0] for row in rows()[:3]]
    assert json.loads(output.read_text()) == single
    assert len(set(single)) > 1


def test_prompts_are_those_of_training(export):
    processor = AutoProcessor.from_pretrained(export)
    for row in rows():
        found = processor.apply_chat_template(hf_answers.chat(row), add_generation_prompt=True)
        turns = [Turn("human", row["prompt"]), Turn("gpt", None)]
        segments = render(TEMPLATES["v1"], turns, system="")
        assert found == "<s>" + "".join(segment.text for segment in segments)
