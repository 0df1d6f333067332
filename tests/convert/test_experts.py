"""Models with experts, to `.nemo` and back: bit-equal, whichever way a folder stores them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from neva.commands.convert import main
from neva.convert.options import Options
from neva.convert.parity.text import prove_text
from neva.convert.readers.text import read
from neva.errors import UserError
from neva.formats.hf_folder import FolderWeights
from neva.formats.nemo import open_nemo
from tests.convert import llava, tiny
from tests.experts import FAMILIES, reference

pytestmark = pytest.mark.usefixtures("megatron")


def convert(*paths: Path) -> int:
    return main([str(path) for path in paths])


def assert_same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> None:
    assert set(first) == set(second)
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "qwen2_moe"])
def test_both_spellings_of_a_folder_give_one_nemo_that_gives_the_folder_back(
    tmp_path: Path, family: str
) -> None:
    model = reference(family, tmp_path / "hub")
    model.save_pretrained(tmp_path / "joined", save_original_format=False)
    assert any(name.endswith("experts.gate_up_proj") for name in FolderWeights(tmp_path / "joined"))
    for source in ("hub", "joined"):
        assert convert(tmp_path / source, tmp_path / f"{source}.nemo") == 0
    nemo = open_nemo(tmp_path / "hub.nemo")
    assert_same(nemo.weights, open_nemo(tmp_path / "joined.nemo").weights)
    last = FAMILIES[family][2].get("num_experts", 4) - 1
    layer = "language_model.decoder.layers.2.mlp."
    assert f"{layer}experts.local_experts.{last}.linear_fc2.weight" in nemo.weights
    assert convert(tmp_path / "hub.nemo", tmp_path / "back") == 0
    assert_same(FolderWeights(tmp_path / "hub"), FolderWeights(tmp_path / "back"))
    assert json.loads((tmp_path / "back" / "parity.json").read_text())["verified"] is True
    written, original = (json.loads((tmp_path / f / "config.json").read_text()) for f in ("back", "hub"))
    keys = ("model_type", "num_experts_per_tok", "router_aux_loss_coef", "norm_topk_prob")
    assert [written.get(key) for key in keys] == [original.get(key) for key in keys]


def test_a_llava_goes_to_the_hubs_layout_and_back_from_both_spellings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(tiny.FAMILIES, "mixtral", FAMILIES["mixtral"])
    source = llava.llava_nemo(tmp_path, "mixtral", aspect_ratio="pad", template="chatml")
    assert convert(source, tmp_path / "hub") == 0
    model = LlavaForConditionalGeneration.from_pretrained(tmp_path / "hub")
    shutil.copytree(tmp_path / "hub", tmp_path / "joined")
    model.save_pretrained(tmp_path / "joined", save_original_format=False)
    assert any(name.endswith("experts.gate_up_proj") for name in FolderWeights(tmp_path / "joined"))
    for folder in ("hub", "joined"):
        assert convert(tmp_path / folder, tmp_path / f"{folder}.nemo") == 0
        assert_same(open_nemo(source).weights, open_nemo(tmp_path / f"{folder}.nemo").weights)


def exchange_experts(weights: dict[str, Tensor], layer: str) -> None:
    for matrix in ("gate_proj", "up_proj", "down_proj"):
        one, other = (f"{layer}experts.{number}.{matrix}.weight" for number in (1, 3))
        weights[one], weights[other] = weights[other], weights[one]


def exchange_gate_and_up(weights: dict[str, Tensor], layer: str) -> None:
    for number in range(5):
        one, other = (f"{layer}experts.{number}.{matrix}_proj.weight" for matrix in ("gate", "up"))
        weights[one], weights[other] = weights[other], weights[one]


def another_order_of_the_router(weights: dict[str, Tensor], layer: str) -> None:
    weights[f"{layer}gate.weight"] = weights[f"{layer}gate.weight"].flip(0)


@pytest.mark.parametrize("harm", [exchange_experts, exchange_gate_and_up, another_order_of_the_router])
def test_experts_out_of_order_fail_the_proof(
    tmp_path: Path, harm: Callable[[dict[str, Tensor], str], None]
) -> None:
    reference("qwen3_moe", tmp_path / "hub")
    model = read(tmp_path / "hub", Options())
    prove_text(model, tmp_path / "hub")
    shutil.copytree(tmp_path / "hub", tmp_path / "harmed")
    weights = load_file(tmp_path / "harmed" / "model.safetensors")
    harm(weights, "model.layers.1.mlp.")
    save_file(weights, tmp_path / "harmed" / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="failed its proof"):
        prove_text(model, tmp_path / "harmed")
