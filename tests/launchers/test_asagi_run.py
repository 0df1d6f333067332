"""Megatron-VLM's commands in their order, typed as its page has them, on a model of a few layers."""

import os
from pathlib import Path

import pytest

from neva.formats.hf_folder import write_json
from tests.conftest import image_record, random_image, write_records
from tests.convert.llava import image_processor, write_tokenizer
from tests.convert.tiny import TOWER_SIZES, language_model, tower
from tests.megatron import run_command

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = """\
convert/build_llava_jp.py --save-dir hf --text-model text --vision-model tower --vocab-size-padding
convert/convert_hf_to_megatron.py --tp 1 --pp 1 --hf-dir hf --megatron-dir megatron --sif-path demo.sif
train/run.py -g 1 --tp 1 --pp 1 --node 1 --name one --megatron-load-dir megatron --save-dir runs \
 --tokenizer-load-dir hf --sif-path ./demo.sif --stage 1 --freeze-lm --save-interval 2000 --data-path data.json \
 --conv-template plain --global-batch-size 4 --micro-batch-size 2 --num-workers 0
train/run.py -g 1 --tp 1 --pp 1 --node 1 --name two --megatron-load-dir runs/one-tp1-pp1-gpus1 --save-dir runs \
 --tokenizer-load-dir hf --sif-path ./demo.sif --stage 2 --save-interval 2000 --data-path data.json \
 --global-batch-size 4 --micro-batch-size 2 --num-workers 0
"""


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """A text model, a tower, eight pictures with a question each."""
    tower("siglip").save_pretrained(tmp_path / "tower")
    write_json(
        tmp_path / "tower/preprocessor_config.json", image_processor("siglip", TOWER_SIZES["image_size"])
    )
    language_model("llama", changes={"max_position_embeddings": 2048}).save_pretrained(tmp_path / "text")
    write_tokenizer(tmp_path / "text")
    records = [image_record(number, "<image>\nWhat is it?", "A dog.") for number in range(8)]
    for number in range(8):
        random_image(40, 30, number).save(tmp_path / f"{number}.png")
    write_records(tmp_path / "data.json", records)
    return tmp_path


def test_a_model_is_built_trained_in_two_stages(inputs: Path) -> None:
    for line in COMMANDS.splitlines():
        script, *words = line.split()
        done = run_command([str(ROOT / "scripts" / script), *words], inputs, os.environ)
        assert done.returncode == 0, done.stderr[-2000:]
    assert (inputs / "runs/two-tp1-pp1-gpus1/checkpoints/two-tp1-pp1-gpus1.nemo").is_file()
