"""Idefics2's folders: read bit for bit, written back to the same tensors, proven against transformers."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoProcessor, Idefics2ForConditionalGeneration

from neva.convert.convert import convert
from neva.convert.options import Options
from neva.convert.readers.nemo import open_model
from neva.convert.writers.idefics2 import write_idefics2
from neva.errors import CheckpointError, UserError
from neva.formats.hf_folder import FolderWeights
from neva.formats.json import read_object, write_json
from neva.formats.nemo import open_nemo
from tests.idefics2 import EDGES, LATENTS, PICTURES, save

pytestmark = pytest.mark.usefixtures("megatron")
LLAMA3 = {"model_type": "llama", "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}


@pytest.mark.parametrize(("text", "splits"), [({"sliding_window": 9}, False), (LLAMA3, True)])
def test_a_folder_becomes_a_nemo_and_comes_back_with_the_same_tensors(tmp_path, text, splits):
    save(tmp_path / "theirs", text, splits)
    convert(tmp_path / "theirs", tmp_path / "model.nemo", Options())
    data = open_nemo(tmp_path / "model.nemo").config.data
    assert (data.image_aspect_ratio, data.conv_template, data.do_image_splitting) == (
        "native",
        "idefics2",
        splits,
    )
    assert {key: data[key] for key in EDGES} == EDGES
    convert(tmp_path / "model.nemo", tmp_path / "ours", Options())
    theirs, ours = FolderWeights(tmp_path / "theirs"), FolderWeights(tmp_path / "ours")
    assert set(theirs) == set(ours)
    for name in theirs:
        assert torch.equal(theirs[name], ours[name]), name
    report = json.loads((tmp_path / "ours" / "parity.json").read_text())
    assert report["verified"] and report["samples"] == report["greedy_answers_equal"] == 4
    assert report["max_abs_logit_difference"] <= 2e-5  # float32 sums in another order, logits up to 20
    config = read_object(tmp_path / "ours" / "config.json")
    assert config["perceiver_config"]["num_key_value_heads"] == 2
    processors = [
        AutoProcessor.from_pretrained(tmp_path / name, backend="pil") for name in ("theirs", "ours")
    ]
    content = [
        {"type": "text", "text": "Look:"},
        {"type": "image"},
        {"type": "image"},
        {"type": "text", "text": "?"},
    ]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": content[:1]}]
    prompts = [each.apply_chat_template(messages, add_generation_prompt=True) for each in processors]
    assert prompts[0] == prompts[1]
    inputs = [
        each(text=prompts[0], images=[PICTURES[1:3]], return_tensors="pt").to(torch.float32)
        for each in processors
    ]
    assert inputs[0].keys() == inputs[1].keys()
    for name in inputs[0]:
        assert torch.equal(inputs[0][name], inputs[1][name]), name
    models = [
        Idefics2ForConditionalGeneration.from_pretrained(tmp_path / name) for name in ("theirs", "ours")
    ]
    with torch.no_grad():
        assert torch.equal(models[0](**inputs[0]).logits, models[1](**inputs[1]).logits)
    convert(tmp_path / "ours", tmp_path / "again.nemo", Options())
    again, first = open_model(tmp_path / "again.nemo"), open_model(tmp_path / "model.nemo")
    assert again.config == first.config and again.connector == f"perceiver_n{LATENTS}_d2_h4x8_g2_m52"


def harmed(folder: Path, file: str, key: str, value: object) -> Path:
    content = read_object(folder / file)
    write_json(folder / file, {**content, key: value})
    return folder


@pytest.mark.parametrize(
    ("file", "key", "value", "message"),
    [
        ("config.json", "image_token_id", 7, "image_token_id is 7, but <image> is 134"),
        ("config.json", "perceiver_config", {"hidden_act": "gelu"}, "hidden_act 'gelu' .* expected 'silu'"),
        ("config.json", "perceiver_config", {"resampler_depth": 0}, "resampler_depth is 0, expected a whole"),
    ],
)
def test_what_is_no_such_model_is_refused_with_its_key(tmp_path, file, key, value, message):
    save(tmp_path)
    if key == "perceiver_config":
        value = {**read_object(tmp_path / file)[key], **value}
    with pytest.raises(UserError, match=message):
        convert(harmed(tmp_path, file, key, value), tmp_path / "model.nemo", Options())


def test_what_an_idefics2_has_not_is_refused_on_export(tmp_path):
    save(tmp_path / "theirs")
    convert(tmp_path / "theirs", tmp_path / "model.nemo", Options())
    model = open_model(tmp_path / "model.nemo")
    model.config.data.conv_template = "v1"
    (tmp_path / "out").mkdir()
    with pytest.raises(CheckpointError, match="native with conv_template=v1; only an Idefics2"):
        write_idefics2(model, tmp_path / "out", None)
