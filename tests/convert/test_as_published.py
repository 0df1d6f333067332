"""Folders as others publish them, with what is unusual about each, are proven, or refused in one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from neva.config.paths import _no_weights
from neva.convert.convert import convert
from neva.convert.options import Options
from neva.errors import CheckpointError, UserError
from neva.families.language import language_config_from_hf
from neva.formats.hf_folder import FolderWeights, write_weights
from neva.formats.nemo import open_nemo
from tests.convert.llava import llava_nemo, write_tokenizer
from tests.convert.tiny import SIZES, language_model

pytestmark = pytest.mark.usefixtures("megatron")


def text_folder(folder: Path, family: str) -> Path:
    """A tiny language model as transformers saves it, with a tokenizer."""
    language_model(family).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def test_linear_rope_in_its_old_spelling_is_that_of_the_new_one(tmp_path: Path) -> None:
    folder = text_folder(tmp_path / "old", "linear_rope")
    new = language_config_from_hf(json.loads((folder / "config.json").read_text()))
    edit(
        folder,
        lambda config: (
            config.pop("rope_parameters"),
            config.update(rope_theta=1e4, rope_scaling={"type": "linear", "factor": 2.0}),
        ),
    )
    assert language_config_from_hf(json.loads((folder / "config.json").read_text())) == new
    convert(folder, tmp_path / "x.nemo", Options())
    convert(tmp_path / "x.nemo", tmp_path / "again", Options())
    assert json.loads((tmp_path / "again" / "parity.json").read_text())["verified"]


def test_heads_that_are_together_wider_than_the_model_are_proven(tmp_path: Path) -> None:
    folder = text_folder(tmp_path / "wide", "qwen3")
    config = language_config_from_hf(json.loads((folder / "config.json").read_text()))
    assert config.head_dim * config.num_heads == 60 != config.hidden_size == SIZES["hidden_size"]
    convert(folder, tmp_path / "x.nemo", Options())
    convert(tmp_path / "x.nemo", tmp_path / "again", Options())
    assert json.loads((tmp_path / "again" / "parity.json").read_text())["verified"]


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A llava-hf folder, as convert writes it."""
    nemo = llava_nemo(tmp_path, changes={"num_hidden_layers": 1})
    convert(nemo, tmp_path / "hf", Options(verify=False))
    return tmp_path / "hf"


def test_a_folder_whose_vocabulary_is_padded_behind_the_image_token_keeps_all_rows(
    tmp_path: Path, published: Path
) -> None:
    """As llava-1.5-7b-hf: 32,064 rows, `<image>` is 32000, which is not the last."""
    config = json.loads((published / "config.json").read_text())
    image, rows = config["image_token_index"], config["text_config"]["vocab_size"]
    assert image == rows - 1
    weights = load_file(published / "model.safetensors")
    for name in ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"):
        weights[name] = torch.cat([weights[name], weights[name][:1].expand(192 - rows, -1)]).contiguous()
    save_file(weights, published / "model.safetensors", metadata={"format": "pt"})
    edit(published, lambda config: config["text_config"].update(vocab_size=192))
    convert(published, tmp_path / "padded.nemo", Options())
    assert open_nemo(tmp_path / "padded.nemo").config.vocab_size == 192
    convert(tmp_path / "padded.nemo", tmp_path / "again", Options())
    again = json.loads((tmp_path / "again" / "config.json").read_text())
    assert (again["image_token_index"], again["text_config"]["vocab_size"]) == (image, 192)
    assert json.loads((tmp_path / "again" / "parity.json").read_text())["verified"]


@pytest.mark.parametrize("name", ["a b", "größe 漢字", "lr=1,2", "it's [x]{y}"])
def test_a_folder_may_be_called_anything(tmp_path: Path, published: Path, name: str) -> None:
    source = published.rename(tmp_path / name)
    convert(source, tmp_path / f"{name}.nemo", Options())
    convert(tmp_path / f"{name}.nemo", tmp_path / f"{name} again", Options())
    assert json.loads((tmp_path / f"{name} again" / "parity.json").read_text())["verified"]


def test_a_shard_that_is_missing_or_cut_is_named(tmp_path: Path, published: Path) -> None:
    weights = dict(FolderWeights(published).items())
    (published / "model.safetensors").unlink()
    write_weights(published, weights.items(), shard_bytes=100_000)
    shards = sorted(published.glob("*.safetensors"))
    assert len(shards) > 1
    content = shards[1].read_bytes()
    shards[1].write_bytes(content[:-3])
    with pytest.raises(
        CheckpointError, match=rf"{shards[1].name}: its tensors end at byte .* and is cut short"
    ):
        convert(published, tmp_path / "x.nemo", Options())
    shards[1].unlink()
    with pytest.raises(
        CheckpointError, match=rf"the index names the file '{shards[1].name}', which is not there"
    ):
        convert(published, tmp_path / "x.nemo", Options())


@pytest.mark.parametrize("with_shards", [True, False])
def test_a_single_file_counts_beside_the_index_of_an_earlier_save(
    tmp_path: Path, published: Path, with_shards: bool
) -> None:
    weights = load_file(published / "model.safetensors")
    write_weights(published, ((name, tensor + 1) for name, tensor in weights.items()), shard_bytes=100_000)
    if not with_shards:
        for shard in published.glob("model-*.safetensors"):
            shard.unlink()
    found = FolderWeights(published)
    assert all(torch.equal(found[name], weights[name]) for name in weights)
    assert not list(_no_weights("key", str(published)))


def to_fp8(weights: dict[str, torch.Tensor]) -> None:
    name = "language_model.model.layers.0.mlp.up_proj.weight"
    weights[name] = weights[name].to(torch.float8_e4m3fn)


def to_4_bits(weights: dict[str, torch.Tensor]) -> None:
    """As bitsandbytes packs them."""
    name = "language_model.model.layers.0.mlp.up_proj.weight"
    weights[f"{name}.absmax"] = torch.ones(4)
    weights[name] = torch.zeros(weights[name].numel() // 2, 1, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("quantise", "config", "message"),
    [
        (to_fp8, None, "up_proj.weight has dtype F8_E4M3, expected one of"),
        (
            to_fp8,
            {"quant_method": "fp8"},
            "quantization_config is .*fp8.*, expected none: neva reads no quantised",
        ),
        (to_4_bits, None, "1 Hugging Face tensors have no place in this model: .*up_proj.weight.absmax"),
        (to_4_bits, {"load_in_4bit": True}, "quantization_config is .*load_in_4bit.*, expected none"),
    ],
)
def test_a_quantised_source_is_refused_in_one_sentence(
    tmp_path: Path, published: Path, quantise: Any, config: dict[str, Any] | None, message: str
) -> None:
    weights = load_file(published / "model.safetensors")
    quantise(weights)
    save_file(weights, published / "model.safetensors", metadata={"format": "pt"})
    if config is not None:
        edit(published, lambda whole: whole.update(quantization_config=config))
    with pytest.raises(UserError, match=message) as raised:
        convert(published, tmp_path / "x.nemo", Options())
    assert str(published) in str(raised.value) and "\n" not in str(raised.value)
    assert not (tmp_path / "x.nemo").exists()
