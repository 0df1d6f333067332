"""easy-VQA as LLaVA data: nothing of the test images is trained on, captions say what the pictures show."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from examples.quickstart import data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quickstart's data: of the training images every fortieth, twice."""
    path, paths = tmp_path_factory.mktemp("data"), data.image_paths
    some = {number: path for number, path in paths("train").items() if number % 40 == 0}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "image_paths", lambda split: some if split == "train" else paths(split))
        data.write_data(path, copies=2, questions_per_conversation=4, seed=1)
    return path


def test_training_files_show_training_images_only(folder: Path) -> None:
    for name in ("pretrain.json", "finetune.json"):
        images = {record["image"] for record in json.loads((folder / name).read_text())}
        assert len(images) > 100
        assert all(image.startswith("train_") for image in images)
    train = {Path(path).read_bytes() for path in data.image_paths("train").values()}
    test = {Path(path).read_bytes() for path in data.image_paths("test").values()}
    assert (len(data.image_paths("train")), len(data.image_paths("test"))) == (4000, 1000)
    assert not train & test


def test_every_test_question_is_a_prompt_with_its_truth(folder: Path) -> None:
    rows = [json.loads(line) for line in (folder / "test.jsonl").read_text().split("\n") if line]
    asked = [(f"<image>\n{one.text}", f"test_{one.image}.png", one.answer) for one in data.questions("test")]
    assert [(row["prompt"], row["image"], row["truth"]) for row in rows] == asked
    assert all((folder / "images" / row["image"]).is_file() for row in rows)


def test_conversations_hold_the_questions_of_their_image(folder: Path) -> None:
    answers = {(one.image, one.text): one.answer for one in data.questions("train")}
    records = json.loads((folder / "finetune.json").read_text())
    for record in records:
        image = int(record["image"].split("_")[1])
        turns = [turn["value"].removeprefix("<image>\n") for turn in record["conversations"]]
        assert 1 <= len(turns) // 2 <= 4
        for question, answer in zip(turns[::2], turns[1::2], strict=True):
            assert answers[image, question] == answer


@pytest.mark.parametrize(
    ("asked", "caption"),
    [
        ([("what color is the circle?", "teal")], "teal circle"),
        ([("is there a red shape?", "yes"), ("what shape is in the image?", "triangle")], "red triangle"),
        ([("is there not a red shape?", "no"), ("is there a triangle?", "yes")], "red triangle"),
        ([("is there a red shape?", "no"), ("is there a triangle?", "yes")], None),
    ],
)
def test_a_caption_says_what_the_questions_tell(asked: list[tuple[str, str]], caption: str | None) -> None:
    assert data.describe([data.Question(text, answer, 0) for text, answer in asked]) == caption


def test_changed_copies_keep_the_whole_shape() -> None:
    pixels = np.full((64, 64, 3), 240, dtype=np.uint8)
    pixels[10:20, 5:25] = (0, 128, 128)
    for changed in data.variants(pixels, "teal rectangle", 30, random.Random(0)):
        ys, xs = np.nonzero((changed != 240).any(axis=-1))
        sides = {int(np.ptp(ys)) + 1, int(np.ptp(xs)) + 1}
        assert (len(ys), sides) == (200, {10, 20})


def test_a_complete_folder_is_left_as_it_is(folder: Path) -> None:
    before = (folder / "finetune.json").stat().st_mtime_ns
    data.write_data(folder, copies=2, questions_per_conversation=1, seed=9)
    assert (folder / "finetune.json").stat().st_mtime_ns == before
    with Image.open(folder / "images" / "train_0_1.png") as image:
        assert image.size == (64, 64)
