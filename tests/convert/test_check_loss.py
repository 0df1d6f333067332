"""`neva check-loss`: the mean loss of a record, by transformers and by neva, from the command line."""

import json

import pytest

from neva.commands.check_loss import main
from neva.convert.readers.nemo import open_model
from neva.convert.writers.llava_hf import write_llava_hf
from tests.convert.llava import llava_nemo
from tests.idefics2 import PICTURES, save

pytestmark = pytest.mark.usefixtures("megatron")


@pytest.fixture
def records(tmp_path):
    """Records with no, one and several images, anywhere, of which some are questions and answers twice."""
    for number, picture in enumerate(PICTURES):
        picture.save(tmp_path / f"{number}.png")
    turns = [
        (["<image>\nWhat?", "A cat"], ["0.png"]),
        (["Compare <image> and <image>", "Both", "Sure?<image>", "Yes"], ["1.png", "4.png", "3.png"]),
        (["Hello", "Hi"], []),
    ]
    records = [
        {
            "id": f"record {number}",
            "image": images,
            "conversations": [
                {"from": "gpt" if at % 2 else "human", "value": text} for at, text in enumerate(texts)
            ],
        }
        for number, (texts, images) in enumerate(turns)
    ]
    path = tmp_path / "records.json"
    path.write_text(json.dumps(records))
    return path


@pytest.mark.parametrize("splits", [False, True])
def test_an_idefics2_has_the_same_loss_on_answers_and_on_all(tmp_path, records, capsys, splits):
    save(tmp_path / "hf", {"max_position_embeddings": 400}, splits)
    words = [str(tmp_path / "hf"), str(records), "--image-folder", str(tmp_path)]
    figures = []
    for more in ([], ["--all-tokens"]):
        assert main([*words, *more]) == 0
        *lines, last = capsys.readouterr().out.splitlines()
        assert last.startswith("equal: 3 records")
        figures.append([line.split()[-4:-1] for line in lines[1:]])
    assert all(0.1 < float(theirs) < 50 for rows in figures for _, theirs, _ in rows)
    assert main([*words, "--tolerance", "1e-30", "--count", "1"]) == 1  # the last digits of float32
    assert capsys.readouterr().out.splitlines()[-1].startswith("different: 1 records")
    assert all(int(few[0]) < int(many[0]) for few, many in zip(*figures, strict=True))


@pytest.mark.parametrize("aspect_ratio", ["pad", "anyres"])
def test_a_llava_has_the_same_loss(tmp_path, records, capsys, aspect_ratio):
    model = open_model(
        llava_nemo(tmp_path, aspect_ratio=aspect_ratio, changes={"max_position_embeddings": 500})
    )
    (tmp_path / "hf").mkdir()
    write_llava_hf(model, tmp_path / "hf", None)
    words = [str(tmp_path / "hf"), str(records), "--image-folder", str(tmp_path)]
    assert main(words) == 0
    assert "equal: 3 records" in (shown := capsys.readouterr().out)
    assert "record 1                      3" in shown


def test_what_cannot_be_compared_is_one_sentence(tmp_path, records, capsys):
    path = llava_nemo(tmp_path)
    assert main([str(path), str(records)]) == 1
    assert "is a LLaVA model; expected a folder that transformers loads" in capsys.readouterr().err
