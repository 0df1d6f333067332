"""Folders as transformers of today and yesterday write them are read; what is put together otherwise is refused."""

import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, LlavaConfig, LlavaForConditionalGeneration, Qwen2Config

from neva.commands.convert import main
from neva.convert import detect
from neva.convert.options import Options
from neva.convert.readers import llava_hf
from neva.errors import CheckpointError, ConfigError
from neva.families.language import language_config_from_hf
from neva.formats.hf_files import image_processor_settings
from neva.formats.hf_folder import FolderWeights, open_weights
from neva.formats.nemo import open_nemo
from tests.convert.llava import llava_nemo
from tests.convert.tiny import SIZES

pytestmark = pytest.mark.usefixtures("megatron")


def convert(*arguments):
    return main([str(argument) for argument in arguments])


@pytest.fixture(params=["clip", "siglip"])
def exported(tmp_path, request):
    """A llava-hf folder."""
    assert convert(llava_nemo(tmp_path, kind=request.param), tmp_path / "hf", "--no-verify") == 0
    return tmp_path / "hf"


def assert_same_model(folder, expected):
    """The two folders give the same tensors, sizes and image processor."""
    first, second = (llava_hf.read(path, Options()) for path in (folder, expected))
    assert (first.language, first.vision, first.connector) == (
        second.language,
        second.vision,
        second.connector,
    )
    assert first.weights.keys() == second.weights.keys()
    assert all(torch.equal(first.weights[name], second.weights[name]) for name in second.weights)
    assert first.config == second.config


def test_what_transformers_saves_today_is_read(exported, tmp_path):
    """One processor_config.json for the whole processor, and the names that tensors have in memory."""
    saved = tmp_path / "saved"
    model = LlavaForConditionalGeneration.from_pretrained(exported, dtype=torch.float32)
    model.save_pretrained(saved, save_original_format=False)
    AutoProcessor.from_pretrained(exported, backend="pil").save_pretrained(saved)
    assert not (saved / "preprocessor_config.json").exists()
    assert any(name.startswith("model.language_model.") for name in FolderWeights(saved))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(exported / name, saved)
    assert_same_model(saved, exported)
    for key in ("image_mean", "image_std", "do_resize", "resample"):
        assert image_processor_settings(saved)[key] == image_processor_settings(exported)[key]
    stale = image_processor_settings(exported) | {"image_mean": [0.9, 0.9, 0.9]}
    (saved / "preprocessor_config.json").write_text(json.dumps(stale))  # of an earlier save
    assert image_processor_settings(saved)["image_mean"] == image_processor_settings(exported)["image_mean"]
    assert convert(saved, tmp_path / "saved.nemo") == 0
    assert convert(tmp_path / "saved.nemo", tmp_path / "again") == 0  # with proof


def change(folder, edit, name="config.json"):
    path = folder / name
    config = json.loads(path.read_text())
    edit(config)
    path.write_text(json.dumps(config))


@pytest.mark.parametrize("exported", ["clip"], indirect=True)
@pytest.mark.parametrize(
    "edit",
    [
        lambda config: config.update(vision_feature_layer=[config["vision_feature_layer"]]),
        lambda config: config.pop("vision_feature_layer"),
        lambda config: config.pop("vision_feature_select_strategy"),
        lambda config: config.pop("projector_hidden_act"),
        lambda config: config["vision_config"].pop("model_type"),
    ],
)
def test_what_transformers_takes_for_granted_need_not_be_said(exported, tmp_path, edit):
    shutil.copytree(exported, tmp_path / "other")
    change(tmp_path / "other", edit)
    assert_same_model(tmp_path / "other", exported)


@pytest.mark.parametrize("exported", ["siglip"], indirect=True)
def test_a_strategy_that_drops_a_patch_is_refused_at_once(exported):
    change(exported, lambda config: config.update(vision_feature_select_strategy="default"))
    with pytest.raises(ConfigError, match="is 'default', which drops the first patch of a siglip tower"):
        llava_hf.read(exported, Options())
    change(exported, lambda config: config.update(vision_feature_select_strategy="some"))
    with pytest.raises(ConfigError, match="is 'some', expected 'default' or 'full'"):
        llava_hf.read(exported, Options())


@pytest.mark.parametrize("exported", ["clip"], indirect=True)
def test_feature_layers_that_are_no_numbers_are_refused(exported):
    change(exported, lambda config: config.update(vision_feature_layer=[-2, "x"]))
    with pytest.raises(ConfigError, match="vision_feature_layer: found .*, expected a layer or a list"):
        llava_hf.read(exported, Options())


@pytest.mark.parametrize("exported", ["clip"], indirect=True)
def test_tied_embeddings_may_be_stated_above_the_text_config(exported, tmp_path, capsys):
    sizes = {**SIZES, "vocab_size": 134}
    whole = json.loads((exported / "config.json").read_text())
    config = LlavaConfig(
        tie_word_embeddings=True,
        text_config=Qwen2Config(**sizes),
        vision_config=whole["vision_config"],
        image_token_index=133,
    )
    shutil.copytree(exported, tmp_path / "tied")
    LlavaForConditionalGeneration(config).save_pretrained(tmp_path / "tied")
    saved = json.loads((tmp_path / "tied" / "config.json").read_text())
    assert saved["tie_word_embeddings"] and not saved["text_config"].get("tie_word_embeddings")
    assert language_config_from_hf(saved).tied
    assert convert(tmp_path / "tied", tmp_path / "tied.nemo") == 0
    assert "language_model.output_layer.weight" not in open_nemo(tmp_path / "tied.nemo").weights
    assert convert(tmp_path / "tied.nemo", tmp_path / "again") == 0  # with proof
    first, second = (
        LlavaForConditionalGeneration.from_pretrained(path, dtype=torch.float64)(
            input_ids=torch.arange(3, 40)[None]
        ).logits
        for path in (tmp_path / "tied", tmp_path / "again")
    )
    assert torch.equal(first[..., :133], second[..., :133])  # the last row is the image token's


@pytest.mark.parametrize("exported", ["clip"], indirect=True)
def test_a_processor_that_is_nowhere_is_named(exported, capsys):
    (exported / "preprocessor_config.json").unlink()
    with pytest.raises(
        CheckpointError, match="hf has no image processor; expected a preprocessor_config.json"
    ):
        llava_hf.read(exported, Options())


def test_the_template_is_that_of_any_file_of_the_folder_or_what_is_asked_for(tmp_path, caplog):
    hf = tmp_path / "hf"
    assert convert(llava_nemo(tmp_path, template="mistral"), hf, "--no-verify") == 0
    change(hf, lambda settings: settings.pop("chat_template"), "tokenizer_config.json")
    (hf / "chat_template.jinja").unlink()
    assert llava_hf.read(hf, Options()).config.data.conv_template == "mistral"  # of chat_template.json
    (hf / "chat_template.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    for asked, recorded in ((None, "v1"), ("chatml", "chatml")):
        caplog.clear()
        assert llava_hf.read(hf, Options(conv_template=asked)).config.data.conv_template == recorded
        assert ("a chat template that neva does not know" in caplog.text) is (asked is None)
    with pytest.raises(ConfigError, match="conv_template is 'v2', expected one of .*mistral"):
        llava_hf.read(hf, Options(conv_template="v2"))
    (hf / "chat_template.json").unlink()
    llava_hf.read(hf, Options())
    assert "has no chat template; the model is recorded with conv_template v1: say with --conv" in caplog.text


class Thing:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": Thing()}, "cannot be read as tensors alone .*nothing in it was executed"),
        ({"a": 1.0}, "a is a float, expected a tensor"),
        ({"a": [1, 2]}, "a is a list, expected a tensor"),
        ([torch.ones(1)], "holds a list, expected tensors by name"),
    ],
)
def test_a_bin_file_that_holds_other_things_is_one_sentence(tmp_path, content, message, capsys):
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=message) as raised:
        open_weights(tmp_path / "pytorch_model.bin")
    assert "\n" not in str(raised.value) and "executed" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"PK", b"\x80\x02", pickle.dumps({"a": 1}, protocol=2)])
def test_a_bin_file_that_is_none_is_one_sentence(tmp_path, content):
    (tmp_path / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        open_weights(tmp_path / "pytorch_model.bin")


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_pointer_of_git_lfs_is_called_so(tmp_path, name):
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(CheckpointError, match=rf"{name} is a pointer of git LFS, .*\(git lfs pull\)"):
        FolderWeights(tmp_path)


def test_what_a_bin_file_holds_instead_of_tensors_is_said(tmp_path):
    torch.save({"a": np.ones(2)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="as tensors alone .*numpy") as raised:
        FolderWeights(tmp_path)
    assert "Re-running" not in str(raised.value)


def test_detect_reads_no_weights(exported):
    shutil.rmtree(exported.parent / "hf2", ignore_errors=True)
    (exported / "model.safetensors").unlink()
    assert detect.detect(exported).reader == "llava_hf"
