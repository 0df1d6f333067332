"""`neva convert`: what is found decides; round trips are bit-equal; nothing half finished is left."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from neva.commands.convert import main
from neva.convert.parity import llava
from neva.convert.writers.llava_original import name_advice
from neva.formats.hf_folder import FolderWeights
from neva.formats.json import write_json
from neva.formats.nemo import open_nemo, write_nemo
from tests.convert.llava import image_processor, llava_nemo, write_tokenizer
from tests.convert.tiny import FAMILIES, RELATIVES, language_model, tower
from tests.megatron import run_command

pytestmark = pytest.mark.usefixtures("megatron")
ROOT = Path(__file__).parents[2]


def convert(*arguments) -> int:
    return main([str(argument) for argument in arguments])


def assert_same_weights(first, second):
    assert set(first) == set(second)
    for name in first:
        assert first[name].dtype == second[name].dtype, name
        assert torch.equal(first[name], second[name]), name


def assert_same_model(first: Path, second: Path):
    one, other = open_nemo(first), open_nemo(second)
    assert_same_weights(one.weights, other.weights)
    for key in one.config:
        if key not in ("mm_cfg", "data", "tokenizer"):
            assert one.config[key] == other.config[key], key
    assert one.config.mm_cfg.mm_mlp_adapter_type == other.config.mm_cfg.mm_mlp_adapter_type
    for key in one.config.mm_cfg.vision_encoder:
        assert one.config.mm_cfg.vision_encoder[key] == other.config.mm_cfg.vision_encoder[key], key
    for key in ("conv_template", "image_aspect_ratio"):
        assert one.config.data[key] == other.config.data[key]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocab_size", [133, 32003])
def test_text_round_trip_is_bit_equal(tmp_path, family, dtype, vocab_size):
    original = tmp_path / "original"
    language_model(family, changes={"vocab_size": vocab_size}).to(dtype).save_pretrained(original)
    if not family.startswith("qwen2"):  # transformers rebuilds these tokenizers in its own class
        write_tokenizer(original, vocab_size)
    assert convert(original, tmp_path / "m.nemo") == 0
    assert convert(tmp_path / "m.nemo", tmp_path / "back") == 0
    assert_same_weights(FolderWeights(original), FolderWeights(tmp_path / "back"))
    report = json.loads((tmp_path / "back" / "parity.json").read_text())
    assert report["verified"] is True
    assert report["max_kl_per_position"] <= 1e-8
    open_nemo(tmp_path / "m.nemo").verify()


@pytest.mark.parametrize("family", RELATIVES)
def test_relatives_of_llama_come_back_bit_equal_and_with_proof(tmp_path, family):
    original = tmp_path / "original"
    language_model(family, changes={"vocab_size": 133}).to(torch.bfloat16).save_pretrained(original)
    write_tokenizer(original, 133)
    assert convert(original, tmp_path / "m.nemo") == 0
    assert convert(tmp_path / "m.nemo", tmp_path / "back") == 0
    assert_same_weights(FolderWeights(original), FolderWeights(tmp_path / "back"))
    report = json.loads((tmp_path / "back" / "parity.json").read_text())
    assert report["verified"] is True and report["max_kl_per_position"] <= 1e-8
    ids = torch.arange(40)[None]
    loaded, back = (AutoModelForCausalLM.from_pretrained(folder) for folder in (original, tmp_path / "back"))
    with torch.no_grad():
        assert torch.equal(back(ids).logits, loaded(ids).logits)


@pytest.mark.parametrize(("family", "model_type"), [("smollm2", "llama"), ("qwen3", "qwen3")])
def test_minimind_round_trip_keeps_every_tensor(tmp_path, family, model_type):
    """MiniMind's weights have LLaMA's names, since its version with head_dim Qwen3's q/k norms too."""
    original = tmp_path / "minimind"
    changes = {"vocab_size": 6400, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}
    model = language_model(family, changes=changes)
    model.save_pretrained(original)
    config = {key: value for key, value in model.config.to_dict().items() if key != "rope_parameters"}
    config |= {"model_type": "minimind", "rope_theta": 1e6, "architectures": ["MiniMindForCausalLM"]}
    if model_type == "llama":
        config.pop("head_dim", None)
    (original / "config.json").write_text(json.dumps(config))
    write_tokenizer(original, vocab_size=6400)
    assert convert(original, tmp_path / "m.nemo") == 0
    assert convert(tmp_path / "m.nemo", tmp_path / "back") == 0
    assert_same_weights(FolderWeights(original), FolderWeights(tmp_path / "back"))
    assert json.loads((tmp_path / "back" / "config.json").read_text())["model_type"] == model_type
    ids = torch.arange(40)[None]
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    with torch.no_grad():
        assert torch.equal(back(ids).logits, model(ids).logits)


LLAVA_FAMILIES = ["llama", "llama3", "qwen2", "qwen3", "mistral"]


@pytest.mark.parametrize(
    ("family", "kind", "vocab_size", "dtype"),
    [(family, kind, 133, torch.bfloat16) for family in LLAVA_FAMILIES for kind in ("clip", "siglip")]
    + [
        (family, "siglip", 133, torch.bfloat16)
        for family in ("stablelm", "phi3", "olmo2", "gemma2_uncapped", "gemma3")
    ]
    + [("llama", "siglip", 32003, torch.float32), ("smollm2", "clip", 32003, torch.float32)],
)
def test_llava_round_trip_is_bit_equal(tmp_path, family, kind, vocab_size, dtype):
    changes = {"vocab_size": vocab_size}
    source = llava_nemo(
        tmp_path, family, kind, aspect_ratio="pad", template="chatml", dtype=dtype, changes=changes
    )
    assert convert(source, tmp_path / "hf") == 0
    assert convert(tmp_path / "hf", tmp_path / "back.nemo") == 0
    assert_same_model(source, tmp_path / "back.nemo")
    assert convert(tmp_path / "back.nemo", tmp_path / "hf2") == 0
    assert_same_weights(FolderWeights(tmp_path / "hf"), FolderWeights(tmp_path / "hf2"))
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        assert (tmp_path / "hf" / file).read_text() == (tmp_path / "hf2" / file).read_text(), file


def test_a_llava_with_capped_logits_is_refused_since_transformers_leaves_the_cap_out(tmp_path, capsys):
    source = llava_nemo(tmp_path, "gemma2", "siglip", aspect_ratio="pad", template="chatml")
    assert convert(source, tmp_path / "hf") == 1
    assert "final_logit_softcapping is 30.0" in capsys.readouterr().err


@pytest.mark.parametrize("family", ["llama", "smollm2", "llama3"])
def test_original_layout_round_trip_with_a_trained_tower(tmp_path, family):
    source = llava_nemo(tmp_path, family)
    assert convert(source, tmp_path / "llava-x", "--layout", "original") == 0
    names = set(FolderWeights(tmp_path / "llava-x"))
    assert "model.mm_projector.0.weight" in names
    assert "model.vision_tower.vision_tower.vision_model.embeddings.class_embedding" in names
    config = json.loads((tmp_path / "llava-x" / "config.json").read_text())
    assert config["mm_vision_tower"] == str(tmp_path / "llava-x" / "vision_tower")
    assert config["unfreeze_mm_vision_tower"] is True
    assert convert(tmp_path / "llava-x", tmp_path / "back.nemo") == 0
    assert_same_model(source, tmp_path / "back.nemo")


@pytest.mark.parametrize(
    ("family", "model_type"), [("mistral", "llava_mistral"), ("qwen2_untied", "llava_qwen")]
)
def test_the_original_layout_of_other_language_models_is_read(tmp_path, family, model_type):
    source = llava_nemo(tmp_path, family)
    assert convert(source, tmp_path / "hf", "--no-verify") == 0
    other = {"vision_tower": "model.vision_tower.vision_tower", "language_model.": ""}
    other |= {f"multi_modal_projector.linear_{n}": f"model.mm_projector.{2 * n - 2}" for n in (1, 2)}
    stored = {}
    for name, tensor in FolderWeights(tmp_path / "hf").items():
        for prefix in other:
            name = name.replace(prefix, other[prefix])
        stored[name] = tensor[:133].clone() if tensor.shape[0] == 134 else tensor.clone()
    (tmp_path / "llava").mkdir()
    save_file(stored, tmp_path / "llava" / "model.safetensors")
    whole = json.loads((tmp_path / "hf" / "config.json").read_text())
    said = {"mm_vision_tower": str(tmp_path / "hf"), "mm_vision_select_layer": -2}
    said |= {"mm_projector_type": "mlp2x_gelu", "model_type": model_type, "vocab_size": 133}
    write_json(tmp_path / "llava" / "config.json", {**whole["text_config"], **said})
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tmp_path / "tokenizer" / name, tmp_path / "llava")
    assert convert(tmp_path / "llava", tmp_path / "back.nemo") == 0
    assert_same_model(source, tmp_path / "back.nemo")


def with_tower_folder(tmp_path: Path, source: Path) -> tuple[Path, Path]:
    """A fine-tuned `.nemo` that refers to the tower, and the tower's folder."""
    folder = tmp_path / "clip"
    tower("clip", seed=9).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(image_processor("clip", 28)))
    nemo = open_nemo(source)
    config = nemo.config.copy()
    config.mm_cfg.vision_encoder.from_pretrained = str(folder)
    weights = [(name, nemo.weights[name]) for name in nemo.weights if not name.startswith("vision_tower.")]
    path = tmp_path / "tuned.nemo"
    write_nemo(path, config, weights, tmp_path / "tokenizer", nemo.image_processor, "test", {})
    return path, folder


def test_frozen_tower_is_copied_to_one_layout_and_referenced_in_the_other(tmp_path):
    source, folder = with_tower_folder(tmp_path, llava_nemo(tmp_path))
    assert convert(source, tmp_path / "hf") == 0
    exported, original = FolderWeights(tmp_path / "hf"), tower("clip", seed=9).state_dict()
    for name, tensor in original.items():
        assert torch.equal(exported[f"vision_tower.vision_model.{name}"], tensor)
    assert convert(source, tmp_path / "llava", "--layout", "original") == 0
    config = json.loads((tmp_path / "llava" / "config.json").read_text())
    assert config["mm_vision_tower"] == str(folder)
    assert config["unfreeze_mm_vision_tower"] is False
    assert not any("vision_tower" in name for name in FolderWeights(tmp_path / "llava"))
    assert convert(tmp_path / "llava", tmp_path / "back.nemo") == 0
    assert convert(source, tmp_path / "whole.nemo") == 0
    assert_same_weights(open_nemo(tmp_path / "back.nemo").weights, open_nemo(tmp_path / "whole.nemo").weights)


def test_tower_that_moved_is_found_by_flag_and_named_without(tmp_path, capsys):
    source, folder = with_tower_folder(tmp_path, llava_nemo(tmp_path))
    moved = folder.rename(tmp_path / "elsewhere")
    assert convert(source, tmp_path / "hf") == 1
    assert "holds no vision tower" in capsys.readouterr().err
    assert convert(source, tmp_path / "hf", "--vision_encoder_path", moved) == 0


def test_stage_one_file_combines_with_folders(tmp_path):
    text, eye = tmp_path / "text", tmp_path / "eye"
    language_model("llama", seed=4).save_pretrained(text)
    tower("clip", seed=9).save_pretrained(eye)
    stage1 = llava_nemo(tmp_path, parts=("projector",))
    assert set(open_nemo(stage1).weights) == {
        f"projector.{n}.{kind}" for n in (0, 2) for kind in ("weight", "bias")
    }
    assert convert(stage1, tmp_path / "hf", "--llm_path", text, "--vision_encoder_path", eye) == 0
    exported = FolderWeights(tmp_path / "hf")
    state = language_model("llama", seed=4).state_dict()
    assert torch.equal(exported["language_model.model.norm.weight"], state["model.norm.weight"])


def test_new_model_from_a_text_model_and_a_tower(tmp_path):
    text, eye = tmp_path / "text", tmp_path / "eye"
    language_model("qwen2", seed=4).save_pretrained(text)
    write_tokenizer(text)
    tower("siglip", seed=9).save_pretrained(eye)
    (eye / "preprocessor_config.json").write_text(json.dumps(image_processor("siglip", 28)))
    for target in ("a.nemo", "hf"):
        assert convert(text, tmp_path / target, "--vision_encoder_path", eye, "--select_layer", "-1") == 0
    assert convert(tmp_path / "a.nemo", tmp_path / "hf2") == 0
    assert_same_weights(FolderWeights(tmp_path / "hf"), FolderWeights(tmp_path / "hf2"))
    fresh = ["--vision_encoder_path", eye, "--adapter_type", "mlp2x_gelu_downsample"]
    assert convert(text, tmp_path / "quarters.nemo", *fresh) == 0
    section = open_nemo(tmp_path / "quarters.nemo").config
    assert (section.mm_cfg.use_image_tile, list(section.data.image_size)) == (True, [56, 56])


def test_vocabulary_is_padded_to_a_multiple_and_computes_the_same(tmp_path, capsys):
    text, eye = tmp_path / "text", tmp_path / "eye"
    language_model("llama", seed=4).save_pretrained(text)
    write_tokenizer(text)
    tower("clip", seed=9).save_pretrained(eye)
    (eye / "preprocessor_config.json").write_text(json.dumps(image_processor("clip", 28)))
    flags = ("--vision_encoder_path", eye, "--pad_vocab_to", 64)
    assert convert(text, tmp_path / "hf", *flags) == 0
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["image_token_index"] == 133
    assert config["text_config"]["vocab_size"] == 192
    head = FolderWeights(tmp_path / "hf")["language_model.lm_head.weight"]
    original = FolderWeights(text)["lm_head.weight"]
    assert torch.equal(head[:133], original)
    assert torch.equal(head[133:], original[0].expand(59, -1))  # as likely as <unk>: never the first
    assert convert(tmp_path / "hf", tmp_path / "back.nemo") == 0
    assert convert(tmp_path / "back.nemo", tmp_path / "hf2") == 0
    assert_same_weights(FolderWeights(tmp_path / "hf"), FolderWeights(tmp_path / "hf2"))
    assert convert(text, tmp_path / "x.nemo", *flags) == 1
    assert "--pad_vocab_to pads the vocabulary of a llava-hf folder" in capsys.readouterr().err


def test_precision_rounds_and_is_proven_as_rounded(tmp_path):
    source = llava_nemo(tmp_path)
    assert convert(source, tmp_path / "hf", "--precision", "bf16") == 0
    weights, nemo = FolderWeights(tmp_path / "hf"), open_nemo(source)
    name = "language_model.decoder.final_layernorm.weight"
    assert torch.equal(weights["language_model.model.norm.weight"], nemo.weights[name].bfloat16())
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_existing_target_is_refused_without_force(tmp_path, capsys):
    source = llava_nemo(tmp_path)
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "keep").write_text("mine")
    assert convert(source, tmp_path / "hf") == 1
    assert "exists; choose another target, or pass --force" in capsys.readouterr().err
    assert convert(source, tmp_path / "hf", "--force") == 1
    assert "holds 1 files that its parity.json does not list" in capsys.readouterr().err
    assert (tmp_path / "hf" / "keep").read_text() == "mine"
    (tmp_path / "hf" / "keep").unlink()
    for _ in range(2):  # an empty folder, then an export
        assert convert(source, tmp_path / "hf", "--force", "--no-verify") == 0
    (tmp_path / "hf" / "notes.txt").write_text("mine")
    assert convert(source, tmp_path / "hf", "--force", "--no-verify") == 1
    assert "such as notes.txt: move them away" in capsys.readouterr().err
    assert (tmp_path / "hf" / "notes.txt").read_text() == "mine"


def test_force_does_not_remove_what_is_read(tmp_path, capsys):
    (tmp_path / "d").mkdir()
    source = llava_nemo(tmp_path / "d")
    for target in (source, tmp_path / "d"):
        assert convert(source, target, "--force") == 1
        assert f"{target} is or holds {source}, which is read" in capsys.readouterr().err
        assert source.is_file()


def test_a_weight_that_overflows_is_named_and_nothing_is_written(tmp_path, capsys):
    text = tmp_path / "text"
    model = language_model("llama", seed=4)
    with torch.no_grad():
        model.model.norm.weight[0] = 1e5
    model.save_pretrained(text)
    write_tokenizer(text)
    for target, name in (("x.nemo", "language_model.decoder.final_layernorm.weight"),):
        assert convert(text, tmp_path / target, "--precision", "16") == 1
        assert f"{name} holds a number that is infinite or none at all in float16" in capsys.readouterr().err
        assert sorted(path.name for path in tmp_path.iterdir()) == ["text"]
    assert convert(text, tmp_path / "x.nemo", "--precision", "bf16") == 0
    assert convert(tmp_path / "x.nemo", tmp_path / "hf", "--precision", "16", "--no-verify") == 1
    assert "model.norm.weight holds a number that is infinite" in capsys.readouterr().err


def test_whole_numbers_are_no_weights(tmp_path, capsys):
    text = tmp_path / "text"
    language_model("llama", seed=4).save_pretrained(text)
    write_tokenizer(text)
    weights = load_file(text / "model.safetensors")
    name = "model.layers.0.mlp.down_proj.weight"
    save_file({**weights, name: weights[name].to(torch.int8)}, text / "model.safetensors")
    assert convert(text, tmp_path / "x.nemo") == 1
    assert "layers.0.mlp.linear_fc2.weight holds int8, expected floating-point" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("llava-v1.5-7b", None),
        ("my-LLaVA", None),
        ("tuned", "loads 'tuned' as a text model: rename the folder, with 'llava' in its name"),
        ("llava-mistral", "another kind of model: rename the folder, without 'mistral'"),
    ],
)
def test_a_name_that_the_llava_package_misreads_is_said(name, advice):
    found = name_advice(name)
    assert (found is None) if advice is None else found.endswith(advice)


def test_failed_proof_leaves_no_target(tmp_path, capsys, monkeypatch):
    source = llava_nemo(tmp_path)
    monkeypatch.setattr(llava, "configuration_differences", lambda *_: ["config.json gives rope_theta=1"])
    before = set(tmp_path.iterdir())
    assert convert(source, tmp_path / "hf") == 1
    assert "failed its proof: config.json gives rope_theta=1" in capsys.readouterr().err
    assert set(tmp_path.iterdir()) == before


def test_unverified_export_says_so(tmp_path):
    assert convert(llava_nemo(tmp_path), tmp_path / "hf", "--no-verify") == 0
    assert json.loads((tmp_path / "hf" / "parity.json").read_text())["verified"] is False


def test_token_id_in_the_padding_is_refused(tmp_path, capsys):
    language_model("llama").save_pretrained(tmp_path / "text")
    write_tokenizer(tmp_path / "text", vocab_size=140)
    assert convert(tmp_path / "text", tmp_path / "m.nemo") == 1
    assert "highest id is 139, but the model has 133 vocabulary rows" in capsys.readouterr().err


def test_special_tokens_are_added_with_rows_of_their_own(tmp_path):
    language_model("llama").save_pretrained(tmp_path / "text")
    write_tokenizer(tmp_path / "text")
    tokens = [f"<extra_id_{number}>" for number in range(8)]
    assert convert(tmp_path / "text", tmp_path / "m.nemo", "--add_tokens", "<s>", *tokens) == 0
    nemo = open_nemo(tmp_path / "m.nemo")
    assert nemo.config.vocab_size == 141
    before = FolderWeights(tmp_path / "text")["model.embed_tokens.weight"]
    after = nemo.weights["language_model.embedding.word_embeddings.weight"]
    assert torch.equal(after[:133], before)
    assert torch.allclose(after[133:], before.mean(0).expand(8, -1))
    assert convert(tmp_path / "m.nemo", tmp_path / "back") == 0
    exported = AutoTokenizer.from_pretrained(tmp_path / "back")
    assert exported.convert_tokens_to_ids(["<s>", *tokens]) == [1, *range(133, 141)]


def test_what_cannot_be_exported_is_said_at_once(tmp_path, capsys):
    source = llava_nemo(tmp_path, "qwen2", "siglip")
    assert convert(source, tmp_path / "x", "--layout", "original") == 1
    assert "CLIP towers only" in capsys.readouterr().err
    assert convert(tmp_path / "none", tmp_path / "x.nemo") == 1
    assert "does not exist" in capsys.readouterr().err
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "gpt2" / "config.json").write_text('{"model_type": "gpt_9000"}')
    assert convert(tmp_path / "gpt2", tmp_path / "x.nemo") == 1
    assert (
        "model_type 'gpt_9000' is no language model of the installed transformers" in capsys.readouterr().err
    )


def test_scripts_take_the_flags_of_old_command_lines(tmp_path):
    shutil.rmtree(tmp_path / "text", ignore_errors=True)
    language_model("llama").save_pretrained(tmp_path / "text")
    write_tokenizer(tmp_path / "text")
    folder = ROOT / "scripts" / "checkpoint_converters"
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    command = [str(folder / "convert_llama_hf_to_nemo.py")]
    flags = [
        "--input_name_or_path",
        str(tmp_path / "text"),
        "--output_path",
        str(tmp_path / "m.nemo"),
        "--precision",
        "32",
    ]
    assert run_command([*command, *flags], ROOT, environment).returncode == 0
    assert len(open_nemo(tmp_path / "m.nemo").weights) == 21
    source = llava_nemo(tmp_path)
    command = [str(folder / "convert_llava_nemo_to_hf.py")]
    flags = [
        "--input_name_or_path",
        str(source),
        "--hf_output_path",
        str(tmp_path / "hf"),
        "--processor_type",
        "clip",
    ]
    flags += ["--input_tokenizer", str(tmp_path / "tokenizer"), "--vision_tower_type", "clip", "--cpu-only"]
    assert run_command([*command, *flags], ROOT, environment).returncode == 0
    assert (tmp_path / "hf" / "parity.json").is_file()
    flags[1], flags[3] = str(tmp_path / "model.nemo"), str(tmp_path / "other")
    flags[5] = "siglip"
    found = run_command([*command, *flags], ROOT, environment)
    assert found.returncode == 1 and not (tmp_path / "other").exists()
    assert "--processor_type siglip, but" in found.stderr and "has a clip tower" in found.stderr


def test_a_conversion_that_is_told_to_stop_leaves_nothing(tmp_path):
    language_model("llama").save_pretrained(tmp_path / "original")
    write_tokenizer(tmp_path / "original", 133)
    assert convert(tmp_path / "original", tmp_path / "m.nemo") == 0
    before = sorted(tmp_path.iterdir())
    command = [sys.executable, "-m", "neva", "convert", str(tmp_path / "m.nemo"), str(tmp_path / "back")]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not list(tmp_path.glob(".back.partial-*/new/*")):
            time.sleep(0.005)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert "Traceback" not in errors
    assert sorted(tmp_path.iterdir()) == before
