"""Adapters between a `.nemo` and a folder of peft, and merged into the model that they belong to."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, LlavaForConditionalGeneration

from neva.commands.convert import main
from neva.config.peft import lora_of, tower_lora_of
from neva.constants import IMAGE_TOKEN_ID
from neva.convert.convert import convert
from neva.convert.options import Options
from neva.convert.readers.nemo import open_model
from neva.convert.writers.llava_hf import write_llava_hf
from neva.errors import CheckpointError, ConfigError, UserError
from neva.families.adapters import adapter_shapes
from neva.families.mapping import ConversionError
from neva.families.tower_adapters import tower_adapter_shapes
from neva.formats.nemo import open_nemo, write_nemo
from neva.inference.trained import open_trained
from neva.model.build import build_model
from neva.weights.fingerprint import fingerprint_of
from neva.weights.lazy import Filtered
from tests.convert.llava import llava_nemo

pytestmark = pytest.mark.usefixtures("megatron")


def peft_section(
    variant: str, targets: list[str], layers: list[int] | None = None, scheme: str = "lora"
) -> dict[str, Any]:
    return {
        "peft_scheme": scheme,
        "restore_from_path": None,
        "lora_tuning": {
            "variant": variant, "target_modules": targets, "adapter_dim": 3, "alpha": 5.0, "adapter_dropout": 0.0,
            "dropout_position": "post", "column_init_method": "xavier", "row_init_method": "zero",
            "layer_selection": layers,
            "vision_target_modules": ["q_proj", "fc2"] if scheme == "dora" else None,
        },
    }  # fmt: skip


def adapter_nemo(
    folder: Path, variant: str, targets: list[str], layers: list[int] | None = None, scheme: str = "lora"
) -> Path:
    """Writes a whole `.nemo` and one of adapters beside it, drawn at random, as a training run writes them."""
    base = llava_nemo(folder)
    held = open_nemo(base)
    config = OmegaConf.merge(
        held.config, {"peft": peft_section(variant, targets, layers, scheme), "restore_from_path": str(base)}
    )
    below = open_model(base)
    shapes = dict(adapter_shapes(replace(below.language, lora=lora_of(config))))
    shapes |= dict(tower_adapter_shapes(replace(below.vision, lora=tower_lora_of(config))))
    draw = torch.Generator().manual_seed(4)
    weights = {name: 0.3 * torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    weights |= {name: 1.1 * held.weights[name] for name in held.weights if name.startswith("projector.")}
    parts = {
        part: {"path": str(base), "fingerprint": fingerprint_of(Filtered(held.weights, f"{part}."))}
        for part in ("language_model", "vision_tower")
    }
    path = folder / "adapters.nemo"
    tokenizer = held.extract_tokenizer(folder / "held")
    trained = {"adapters": "trained", "projector": "trained"}
    write_nemo(path, config, weights.items(), tokenizer, held.image_processor, "test", trained, base=parts)
    return path


def factors(path: Path) -> dict[str, torch.Tensor]:
    weights = open_nemo(path).weights
    return {name: weights[name] for name in weights if ".adapter." in name}


@pytest.mark.parametrize(
    ("scheme", "variant", "targets", "layers"),
    [
        ("lora", "nemo", ["all"], None),
        ("lora", "canonical", ["q_proj", "v_proj", "up_proj", "o_proj"], [2]),
        ("dora", "nemo", ["attention", "up_proj", "gate_proj"], None),
    ],
)
def test_peft_loads_an_exported_adapter_onto_the_exported_model(
    tmp_path: Path, scheme: str, variant: str, targets: list[str], layers: list[int] | None
) -> None:
    adapters = adapter_nemo(tmp_path, variant, targets, layers, scheme)
    convert(adapters, tmp_path / "peft", Options())
    report = json.loads((tmp_path / "peft" / "parity.json").read_text())
    assert report["verified"] is True and report["argmax_flips"] == 0

    # and by hand: onto the export of the base, whose projector is another one, as the model with the adapters in it
    (tmp_path / "base").mkdir()
    write_llava_hf(open_model(tmp_path / "model.nemo"), tmp_path / "base", None)
    convert(adapters, tmp_path / "merged", Options(merge=True))
    base, merged = (
        LlavaForConditionalGeneration.from_pretrained(tmp_path / name).eval() for name in ("base", "merged")
    )
    ids = torch.randint(3, 100, (2, 9), generator=torch.Generator().manual_seed(1))
    before = base(ids).logits
    beside = peft.PeftModel.from_pretrained(base, tmp_path / "peft")
    with torch.no_grad():
        torch.testing.assert_close(beside(ids).logits, merged(ids).logits, atol=2e-5, rtol=2e-5)
    assert (before - merged(ids).logits).abs().max() > 0.01
    projector = beside.base_model.model.model.multi_modal_projector
    weight = merged.model.multi_modal_projector.linear_1.weight
    assert torch.equal(projector.modules_to_save["default"].linear_1.weight, weight)


@pytest.mark.parametrize("scheme", ["lora", "dora"])
def test_a_folder_of_peft_becomes_adapters_that_neva_loads(tmp_path: Path, scheme: str) -> None:
    """There and back, the joined pieces apart: the same model."""
    adapters = adapter_nemo(tmp_path, "nemo", ["attention", "mlp_fc2"], scheme=scheme)
    convert(adapters, tmp_path / "peft", Options(verify=False))
    convert(tmp_path / "peft", tmp_path / "back.nemo", Options(llm_path=tmp_path / "model.nemo"))
    back = open_nemo(tmp_path / "back.nemo")
    tower = ["vision_tower"] * (scheme == "dora")
    assert {name.split(".")[0] for name in back.weights} == {"language_model", "projector", *tower}
    assert all(".adapter." in name or name.startswith("projector.") for name in back.weights)
    assert back.config.peft.peft_scheme == scheme
    assert list(back.config.peft.lora_tuning.target_modules) == [
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "down_proj",
    ]
    logits = []
    for path in (adapters, tmp_path / "back.nemo"):
        trained = open_trained(path)
        language = open_model(path).language
        vision = open_model(path).vision
        model = build_model(vision, language, "mlp2x_gelu").eval()
        trained.fill(model, trained.config)
        draw = torch.Generator().manual_seed(1)
        ids = torch.randint(3, 100, (1, 9 + vision.num_tokens), generator=draw)
        ids[0, 2 : 2 + vision.num_tokens] = IMAGE_TOKEN_ID
        pixels = torch.randn(1, 3, vision.side, vision.side, generator=draw)
        logits.append(model(ids, pixels).detach())
    torch.testing.assert_close(*logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("aspect_ratio", "changes"), [
    ("square", {"target_modules": "all-linear"}),
    ("square", {"target_modules": "all-linear", "use_dora": True, "use_rslora": True}),
    ("anyres", {"target_modules": "all-linear"}),
    ("anyres", {"target_modules": r".*language_model.*q_proj", "modules_to_save": ["multi_modal_projector"]}),
])  # fmt: skip
def test_what_peft_trains_of_a_projector_is_in_the_whole_model(
    tmp_path: Path, aspect_ratio: str, changes: dict[str, Any]
) -> None:
    """Factors beside its matrices, or itself; a newline stays as it was."""
    nemo = llava_nemo(tmp_path, aspect_ratio=aspect_ratio)
    convert(nemo, tmp_path / "hf", Options(verify=False))
    base = AutoModelForImageTextToText.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    beside = peft.get_peft_model(base, peft.LoraConfig(r=3, lora_alpha=5, **changes))
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in sorted(beside.named_parameters()):
            if "lora_B" in name or "modules_to_save" in name:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=draw))
    beside.save_pretrained(tmp_path / "peft")
    convert(
        tmp_path / "peft", tmp_path / "merged", Options(llm_path=tmp_path / "hf", merge=True, verify=False)
    )
    whole = beside.merge_and_unload().state_dict()
    merged = AutoModelForImageTextToText.from_pretrained(
        tmp_path / "merged", dtype=torch.float32
    ).state_dict()
    assert merged.keys() == whole.keys()
    unused = "vision_tower.encoder.layers.2."  # no feature depends on this layer
    for name, tensor in merged.items():
        if unused not in name:
            torch.testing.assert_close(tensor, whole[name], atol=1e-6, rtol=1e-6)
    if changes["target_modules"] == "all-linear":
        file = tmp_path / "peft" / "adapter_model.safetensors"
        name = "base_model.model.model.multi_modal_projector.linear_1.lora_A.weight"
        save_file({other: tensor for other, tensor in load_file(file).items() if other != name}, file)
        with pytest.raises(ConversionError, match="there is no multi_modal_projector.linear_1.lora_A.weight"):
            convert(tmp_path / "peft", tmp_path / "x.nemo", Options(llm_path=tmp_path / "hf"))


def test_adapters_of_a_folder_go_on_reading_the_folder(tmp_path: Path) -> None:
    """Whose last row is the image token's."""
    adapters = adapter_nemo(tmp_path, "canonical", ["q_proj", "down_proj"])
    convert(adapters, tmp_path / "peft", Options(verify=False))
    convert(tmp_path / "model.nemo", tmp_path / "hf", Options(verify=False))
    convert(tmp_path / "peft", tmp_path / "back.nemo", Options(llm_path=tmp_path / "hf"))
    assert open_nemo(tmp_path / "back.nemo").config.mm_cfg.llm.from_pretrained == str(tmp_path / "hf")
    logits = []
    for path in (adapters, tmp_path / "back.nemo"):
        trained, opened = open_trained(path), open_model(path)
        model = build_model(opened.vision, opened.language, "mlp2x_gelu").eval()
        trained.fill(model, trained.config)
        logits.append(model(torch.arange(3, 12)[None], None).detach()[..., :133])
    torch.testing.assert_close(*logits, atol=1e-5, rtol=1e-5)
    convert(tmp_path / "back.nemo", tmp_path / "merged", Options(merge=True))
    assert json.loads((tmp_path / "merged" / "parity.json").read_text())["verified"]


def test_a_merged_nemo_computes_what_the_adapters_did(tmp_path: Path) -> None:
    adapters = adapter_nemo(tmp_path, "canonical", ["all"])
    assert main([str(adapters), str(tmp_path / "whole.nemo"), "--merge"]) == 0
    whole = open_nemo(tmp_path / "whole.nemo")
    assert whole.config.peft.peft_scheme == "none" and not factors(tmp_path / "whole.nemo")
    logits = []
    for path in (adapters, tmp_path / "whole.nemo"):
        trained, opened = open_trained(path), open_model(path)
        model = build_model(opened.vision, opened.language, "mlp2x_gelu").eval()
        trained.fill(model, trained.config)
        logits.append(model(torch.arange(3, 12)[None], None).detach())
    torch.testing.assert_close(*logits, atol=1e-5, rtol=1e-5)


def test_another_base_is_refused(tmp_path: Path) -> None:
    adapters = adapter_nemo(tmp_path, "nemo", ["attention_qkv"])
    base = tmp_path / "model.nemo"
    held = open_nemo(base)
    changed = {name: held.weights[name].clone() for name in held.weights}
    changed["language_model.decoder.layers.1.mlp.linear_fc2.weight"][0, 0] += 1e-3
    tokenizer = tmp_path / "held"
    write_nemo(base, held.config, changed.items(), tokenizer, held.image_processor, "x", {}, overwrite=True)
    with pytest.raises(CheckpointError, match="is another language_model than .* its fingerprint is"):
        convert(adapters, tmp_path / "peft", Options())
    trained, opened = open_trained(adapters), open_model(base)
    model = build_model(opened.vision, replace(opened.language, lora=lora_of(trained.config)), "mlp2x_gelu")
    with pytest.raises(CheckpointError, match="is another language_model than"):
        trained.fill(model, trained.config)


def test_what_cannot_be_converted_is_said_in_one_sentence(tmp_path: Path) -> None:
    adapters = adapter_nemo(tmp_path, "nemo", ["attention_qkv"])
    with pytest.raises(
        ConfigError, match=r"^--merge merges adapters, and the source is a LLaVA model without any"
    ):
        convert(tmp_path / "model.nemo", tmp_path / "x.nemo", Options(merge=True))
    with pytest.raises(ConfigError, match="that the source is already: give a folder for peft, or --merge"):
        convert(adapters, tmp_path / "x.nemo", Options())
    convert(adapters, tmp_path / "peft", Options(verify=False))
    with pytest.raises(CheckpointError, match="say with --llm_path which LLaVA they belong to"):
        convert(tmp_path / "peft", tmp_path / "x.nemo", Options())
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    for key, value, message in (
        ("layer_replication", [[0, 2]], r"says layer_replication \[\[0, 2\]\], expected nothing there"),
        ("not_made_yet", 1, "says not_made_yet 1, expected nothing there"),
        (
            "init_lora_weights",
            "pissa_niter_4",
            "'pissa_niter_4', which changes the matrices beside the factors",
        ),
        ("r", None, "r is None, expected a whole number"),
        ("lora_alpha", "8", "lora_alpha is '8', expected a number"),
    ):
        (tmp_path / "peft" / "adapter_config.json").write_text(json.dumps(config | {key: value}))
        with pytest.raises(UserError, match=message):
            convert(tmp_path / "peft", tmp_path / "x.nemo", Options(llm_path=tmp_path / "model.nemo"))
    (tmp_path / "peft" / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
    with pytest.raises(
        ConversionError, match="there is no .*magnitude, which adapters of this configuration"
    ):
        convert(tmp_path / "peft", tmp_path / "x.nemo", Options(llm_path=tmp_path / "model.nemo"))
    (tmp_path / "peft" / "adapter_config.json").write_text(json.dumps(config))
    file = tmp_path / "peft" / "adapter_model.safetensors"
    tower = {
        "base_model.model.model.vision_tower.encoder.layers.0.layer_norm1.lora_A.weight": torch.ones(3, 4)
    }
    save_file(load_file(file) | tower, file)
    with pytest.raises(
        CheckpointError, match="vision_tower.* expected factors beside the matrices of a LLaVA"
    ):
        convert(tmp_path / "peft", tmp_path / "x.nemo", Options(llm_path=tmp_path / "model.nemo"))
    assert not (tmp_path / "x.nemo").exists()


def test_a_folder_as_older_peft_and_transformers_wrote_it_gives_the_same_adapters(tmp_path: Path) -> None:
    """A .bin file, the language model and projector under the names before 4.52, keys that came later absent."""
    convert(adapter_nemo(tmp_path, "canonical", ["all"]), tmp_path / "peft", Options(verify=False))
    shutil.copytree(tmp_path / "peft", tmp_path / "old")
    file = tmp_path / "old" / "adapter_model.safetensors"
    renamed = {
        name.replace("model.model.language_model", "model.language_model.model").replace(
            "model.model.multi", "model.multi"
        ): tensor
        for name, tensor in load_file(file).items()
    }
    file.unlink()
    torch.save(renamed, tmp_path / "old" / "adapter_model.bin")
    for name in ("peft", "old"):
        convert(tmp_path / name, tmp_path / f"{name}.nemo", Options(llm_path=tmp_path / "model.nemo"))
    first, second = (open_nemo(tmp_path / f"{name}.nemo").weights for name in ("peft", "old"))
    assert first.keys() == second.keys() and any(name.startswith("projector.") for name in first)
    assert all(torch.equal(first[name], second[name]) for name in first)
    (tmp_path / "old" / "adapter_model.bin").unlink()
    with pytest.raises(CheckpointError, match="has neither adapter_model.safetensors nor adapter_model.bin"):
        convert(tmp_path / "old", tmp_path / "x.nemo", Options(llm_path=tmp_path / "model.nemo"))
