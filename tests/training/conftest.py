import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

from tests.megatron import free_port, single_process  # noqa: F401

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 60), "blue": (40, 60, 220), "white": (240, 240, 240)}
WORDS = [
    "<unk>",
    "<s>",
    "</s>",
    "<pad>",
    "USER",
    "ASSISTANT",
    ":",
    "what",
    "colour",
    "is",
    "this",
    "it",
    "?",
    *COLOURS,
]


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides of a recipe that trains a tiny model on eight images of one colour and two texts without an image."""
    return colours_in(tmp_path_factory.mktemp("colours"))


def colours_in(folder: Path) -> list[str]:
    """Writes that data into an empty folder and returns the overrides."""
    (folder / "tokenizer").mkdir()
    tokenizer = Tokenizer(
        models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(WORDS[:4])
    tokenizer.save(str(folder / "tokenizer" / "tokenizer.json"))
    records = [_record(folder, number, name) for number, name in enumerate([*COLOURS, *COLOURS])]
    records += [{"id": f"text{n}", "conversations": _turns("is it? " * n, "red " * n)} for n in (1, 3)]
    (folder / "data.json").write_text(json.dumps(records))
    return [
        f"model.tokenizer.type={folder}/tokenizer",
        f"model.data.data_path={folder}/data.json",
        f"model.data.image_folder={folder}",
        "model.data.conv_template=v1",
        "model.data.num_workers=0",
        "model.data.pad_to_multiple_of=1",
        "model.data.image_aspect_ratio=square",
        "model.mm_cfg.vision_encoder.image_size=16",
        "model.mm_cfg.vision_encoder.patch_dim=8",
        "model.mm_cfg.vision_encoder.hidden_size=16",
        "model.mm_cfg.vision_encoder.num_layers=3",
        "model.mm_cfg.vision_encoder.num_attention_heads=2",
        "model.mm_cfg.vision_encoder.ffn_hidden_size=32",
        "model.num_layers=2",
        "model.hidden_size=32",
        "model.ffn_hidden_size=48",
        "model.num_attention_heads=4",
        "model.num_query_groups=2",
        "model.encoder_seq_length=128",
        "model.micro_batch_size=2",
        "model.global_batch_size=4",
        "model.optim.sched.warmup_steps=2",
        "model.restore_from_path=null",
        "trainer.accelerator=cpu",
    ]


def _record(folder: Path, number: int, colour: str) -> dict[str, object]:
    pixels = np.full((16, 16, 3), COLOURS[colour], dtype=np.uint8)
    pixels[number % 16] = 0
    Image.fromarray(pixels).save(folder / f"{number}.png")
    turns = _turns("<image>\nwhat colour is this?", colour)
    if number % 3 == 0:
        turns += _turns("what is it?", f"this is {colour}")
    return {"id": str(number), "image": f"{number}.png", "conversations": turns}


def _turns(question: str, answer: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer.strip()}]
