"""Every classic conversion mistake, made on purpose in a correct export, fails the proof."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from neva.convert.parity.figures import parity_report, require_parity
from neva.convert.parity.llava import prove_llava
from neva.convert.readers.nemo import open_model
from neva.convert.writers.llava_hf import write_llava_hf
from tests.convert.llava import llava_nemo

LAYER = "language_model.model.layers.1."
Q, K = f"{LAYER}self_attn.q_proj.weight", f"{LAYER}self_attn.k_proj.weight"


def swap_rows(weights, config):
    q, k = weights[Q].clone(), weights[K].clone()
    weights[Q][:6], weights[K][:6] = k[:6], q[:6]


def permute_rope(weights, config):
    for name in (Q, K):
        rows, columns = weights[name].shape
        heads = weights[name].view(rows // 6, 3, 2, columns)
        weights[name] = heads.transpose(1, 2).reshape(rows, columns).contiguous()


def interleave_wrongly(weights, config):
    """Rows taken as [all q, all k, all v] where they lie by query group."""
    names = [f"{LAYER}self_attn.{part}_proj.weight" for part in "qkv"]
    q, k, v = (weights[name] for name in names)
    fused = torch.cat([q[:18], k[:6], v[:6], q[18:], k[6:], v[6:]])
    for name, part in zip(names, fused.split([36, 12, 12]), strict=True):
        weights[name] = part.contiguous()


def shift_vocabulary(weights, config):
    name = "language_model.model.embed_tokens.weight"
    weights[name] = weights[name].roll(1, 0)


def shift_head(weights, config):
    weights["language_model.lm_head.weight"] = weights["language_model.lm_head.weight"].roll(1, 0)


def exchange_gate_and_up(weights, config):
    gate, up = f"{LAYER}mlp.gate_proj.weight", f"{LAYER}mlp.up_proj.weight"
    weights[gate], weights[up] = weights[up], weights[gate]


def exchange_norms(weights, config):
    first, second = f"{LAYER}input_layernorm.weight", f"{LAYER}post_attention_layernorm.weight"
    weights[first], weights[second] = weights[second], weights[first]


def transpose_projector_order(weights, config):
    weights["multi_modal_projector.linear_2.weight"] = weights[
        "multi_modal_projector.linear_2.weight"
    ].T.contiguous()


def wrong_tower_prefix(weights, config):
    for name in [name for name in weights if name.startswith("vision_tower.vision_model.")]:
        weights[name.replace("vision_model.", "visual.")] = weights.pop(name)


def wrong_epsilon(weights, config):
    config["text_config"]["rms_norm_eps"] = 1e-6


def lose_rope_theta(weights, config):
    for key in ("rope_theta", "rope_parameters", "rope_scaling"):
        del config["text_config"][key]


def lose_rope_scaling(weights, config):
    config["text_config"]["rope_scaling"] = None
    config["text_config"]["rope_parameters"] = {"rope_type": "default", "rope_theta": 500000.0}


def next_layer(weights, config):
    config["vision_feature_layer"] -= 1


def keep_class_token(weights, config):
    config["vision_feature_select_strategy"] = "full"


def other_activation(weights, config):
    config["vision_config"]["hidden_act"] = "gelu"


MUTATIONS = [
    swap_rows,
    permute_rope,
    interleave_wrongly,
    shift_vocabulary,
    shift_head,
    exchange_gate_and_up,
    exchange_norms,
    transpose_projector_order,
    wrong_tower_prefix,
    wrong_epsilon,
    lose_rope_theta,
    lose_rope_scaling,
    next_layer,
    keep_class_token,
    other_activation,
]


@pytest.fixture
def exported(tmp_path, megatron):
    model = open_model(llava_nemo(tmp_path, family="llama3", changes={"rms_norm_eps": 1e-5}))
    folder = tmp_path / "export"
    folder.mkdir()
    write_llava_hf(model, folder, None)
    return model, folder


@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda mutation: mutation.__name__)
def test_mistake_fails_the_proof(exported, mutate):
    model, folder = exported
    weights = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    mutate(weights, config)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="failed its proof|do not match"):
        prove_llava(model, folder)
    assert not (folder / "parity.json").exists()


def test_tokenizer_that_changed_fails_the_proof(exported):
    model, folder = exported
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["normalizer"] = None
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ValueError, match="tokenizer gives"):
        prove_llava(model, folder)


def test_image_processor_that_changed_fails_the_proof(exported):
    model, folder = exported
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    processor["image_std"] = [0.5, 0.5, 0.5]
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    with pytest.raises(ValueError, match="pixels of a picture"):
        prove_llava(model, folder)


def test_untouched_copy_passes(exported, tmp_path):
    model, folder = exported
    shutil.copytree(folder, tmp_path / "copy")
    prove_llava(model, tmp_path / "copy")


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("sample", [0, 1])
def test_a_model_that_gives_no_numbers_fails(side, sample):
    logits = [[torch.randn(5, 7) for _ in range(2)]] * 2
    logits[side] = list(logits[side])
    logits[side][sample] = torch.full((5, 7), torch.nan)
    report = parity_report(*logits, [2, 2])
    lists = {
        f"{part}_differences": [] for part in ("configuration", "weights", "tokenizer", "image_processor")
    }
    with pytest.raises(ValueError, match="KL per position reaches nan"):
        require_parity({**report, **lists})


def test_not_a_number_fails():
    figures = {
        "max_kl_per_position": float("nan"),
        "argmax_flips": 0,
        "greedy_answers_equal": 1,
        "samples": 1,
    }
    lists = {
        f"{part}_differences": [] for part in ("configuration", "weights", "tokenizer", "image_processor")
    }
    with pytest.raises(ValueError, match="KL per position reaches nan"):
        require_parity({**figures, **lists, "positions": 1})
