"""neva from Python: the same runs, answers and files as by the verbs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from tokenizers import Tokenizer

from examples.mix import main
from neva import api
from neva.errors import ConfigError, SampleError
from neva.formats.nemo import open_nemo
from tests.conftest import conversation, image_record, random_image, write_records
from tests.convert.llava import image_processor, write_tokenizer
from tests.convert.tiny import language_model, tower
from tests.training.conftest import colours  # noqa: F401
from tests.training.test_run import run


def mapping(overrides: list[str]) -> dict[str, Any]:
    """Overrides as keyword arguments."""
    pairs = (item.split("=", 1) for item in overrides)
    return {key: yaml.safe_load(value) for key, value in pairs}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, colours: list[str]) -> tuple[Path, Path]:  # noqa: F811
    """The same short run by overrides and by keyword arguments."""
    folder = tmp_path_factory.mktemp("api")
    expected = run(folder, [*colours, "model.optim.lr=5e-3", "model.global_batch_size=10"], 60, name="verb")
    found = api.train(
        "quickstart_finetune",
        **mapping(colours),
        **{"model.optim.lr": 5e-3},
        model={"global_batch_size": 10},
        trainer={"max_steps": 60},
        exp_manager={"exp_dir": folder, "name": "api"},
    )
    return expected, found


def test_training_from_python_equals_training_by_overrides(trained: tuple[Path, Path]) -> None:
    verb, found = (open_nemo(next((path / "checkpoints").glob("*.nemo"))) for path in trained)
    assert all(torch.equal(verb.weights[name], found.weights[name]) for name in verb.weights)
    assert verb.config == found.config


def test_a_model_answers_files_and_pictures_alike(
    trained: tuple[Path, Path],
    colours: list[str],  # noqa: F811
) -> None:
    images = Path(mapping(colours)["model.data.image_folder"])
    nemo = next((trained[1] / "checkpoints").glob("*.nemo"))
    with api.load(nemo, greedy=True, tokens_to_generate=4) as model:
        question = "what colour is this?"
        by_path = model.answer(images / "0.png", question)
        with Image.open(images / "0.png") as picture:
            assert model.answer([picture], f"<image>\n{question}") == by_path
        several = model.answer_all([(str(images / f"{n}.png"), question) for n in range(4)])
        assert several[0] == by_path and len(set(several)) > 1
        assert isinstance(model.answer([], "is it?"), str)
        with pytest.raises(SampleError, match=r"absent\.png does not exist"):
            model.answer("absent.png", question)
    with pytest.raises(ConfigError, match="inference.gredy"):
        api.load(nemo, gredy=True)


def test_wrong_calls_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no option 'layuot' of a conversion; there are dtype, layout"):
        api.convert("a", "b", layuot="original")
    with pytest.raises(ConfigError, match="model.optim.lrr"):
        api.train("llava_7b_pretrain", **{"model.optim.lrr": 1})
    with pytest.raises(ConfigError, match=r"model\.data\.data_path: no file at it's there"):
        api.train("quickstart_finetune", **{"model.data.data_path": "it's there"})


def test_the_example_mixes_a_siglip_tower_with_another_language_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, eye, images = tmp_path / "text", tmp_path / "eye", tmp_path / "images"
    language_model("qwen2", seed=4).save_pretrained(text)
    vocabulary = Tokenizer.from_file(str(write_tokenizer(text) / "tokenizer.json")).get_vocab_size()
    assert vocabulary <= json.loads((text / "config.json").read_text())["vocab_size"]
    tower("siglip", seed=9).save_pretrained(eye)
    (eye / "preprocessor_config.json").write_text(json.dumps(image_processor("siglip", 28)))
    images.mkdir()
    records = []
    for number in range(16):
        random_image(30, 20, number).save(images / f"{number}.png")
        records.append(image_record(number, "<image>\nWhat?", "A red one."))
    records[0] = {"id": "text", "image": "0.png", "conversations": conversation("Is <image> it?", "No.")}
    data = write_records(tmp_path / "data.json", records)
    main(str(eye), str(text), str(data), str(images), str(tmp_path / "out"))
    assert capsys.readouterr().out.strip().endswith("llava-hf folder " + str(tmp_path / "out" / "hf"))
    assert json.loads((tmp_path / "out/hf/parity.json").read_text())["verified"]
