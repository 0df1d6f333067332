"""Language models that transformers runs: equal to transformers alone, and for LLaMA to Megatron."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from neva.constants import IGNORE_INDEX
from neva.families.configs import LoraConfig
from neva.families.hugging_face import HuggingFaceFamily
from neva.families.language import HUGGING_FACE, MEGATRON, language_table, read_language_config
from neva.formats.json import write_json
from neva.inference.continuation import Continuation, Limits
from neva.inference.generate import ContinuousBatch
from neva.inference.hugging_face import decoder_of
from neva.inference.sampling import Sampling
from neva.model.adapted import fill_magnitudes
from neva.model.build import build_language_model
from neva.model.llava import AnyLanguageModel, NevaModel
from neva.model.packed import packed_samples
from neva.weights.load import load_language_model
from neva.weights.parts import language_weights
from tests.convert.tiny import SIZES, language_model, scramble

TOLERANCE = 1e-5
"""Of losses near 5 in float32, whose sums are taken in other orders."""
GPT2 = {"vocab_size": 133, "n_embd": 36, "n_layer": 3, "n_head": 6, "n_positions": 64}
KINDS: dict[str, dict[str, Any]] = {
    "gpt2": GPT2,  # learned positions, tied, files without the body's name
    "gpt_neox": {**SIZES, "hidden_dropout": 0.1, "attention_dropout": 0.1},
    "phi": {**SIZES, "num_attention_heads": 3, "num_key_value_heads": 3},  # a bias of the head
    "gemma2": {**SIZES, "head_dim": 8, "sliding_window": 6, "final_logit_softcapping": 3.0},
    "cohere": SIZES,  # logits that are scaled
}


def saved(folder: Path, kind: str, **changes: Any) -> torch.nn.Module:
    config = AutoConfig.for_model(
        kind, **{**KINDS.get(kind, SIZES), "eos_token_id": 2, "bos_token_id": 1, **changes}
    )
    model = scramble(AutoModelForCausalLM.from_config(config), 0)
    model.save_pretrained(folder)
    return model


def loaded(folder: Path, backend: str = HUGGING_FACE) -> AnyLanguageModel:
    language = read_language_config(folder, backend)
    model = build_language_model(language)
    load_language_model(NevaModel(model, None, None), folder, language)
    return model.eval()


def losses(model: AnyLanguageModel, ids: Tensor, labels: Tensor | None, lengths: Any = None) -> Tensor:
    packed = None
    if lengths is not None:
        packed = packed_samples(lengths, ids.size(1), model.pg_collection.cp, ids.device)
    return model(model.embed(ids).transpose(0, 1).contiguous(), labels, packed)


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 133, (3, 14), generator=generator)
    labels = torch.randint(3, 133, (3, 14), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.6] = IGNORE_INDEX
    labels[:, 3] = IGNORE_INDEX
    return ids, labels


@pytest.mark.parametrize("has_magnitudes", [False, True])
def test_adapters_compute_what_those_of_peft_do(
    single_process: None, tmp_path: Path, has_magnitudes: bool
) -> None:
    """Logits in float32 and, in float64, gradients; beside matrices with biases."""
    theirs, (ids, _) = saved(tmp_path, "starcoder2"), batch()
    sites = tuple((name, ("whole",)) for name in ("q_proj", "o_proj", "c_fc"))
    lora = LoraConfig(3, 5.0, 0.0, True, sites, None, "xavier", "normal", has_magnitudes=has_magnitudes)
    language = replace(read_language_config(tmp_path, HUGGING_FACE), lora=lora)
    ours = build_language_model(language)
    load_language_model(NevaModel(ours, None, None), tmp_path, language)
    fill_magnitudes(ours)
    settings = {"r": 3, "lora_alpha": 5.0, "use_dora": has_magnitudes}
    wrapped = peft.get_peft_model(
        theirs, peft.LoraConfig(target_modules=[name for name, _ in sites], **settings)
    )
    kinds = {"linear_in": "lora_A", "linear_out": "lora_B", "magnitude": "lora_magnitude_vector"}
    pairs = []
    for name, value in ours.model.named_parameters():
        matrix, is_factor, factor = name.partition(".adapter.whole.")
        if is_factor:
            if factor == "magnitude":
                value.data.mul_(1.1)
            layer = wrapped.base_model.model.get_submodule(matrix)
            other = getattr(layer, kinds[factor])["default"].weight
            other.data.copy_(value)
            pairs.append((value, other))
    assert len(pairs) == len(sites) * language.num_layers * (2 + has_magnitudes)
    for dtype, tolerance in ((torch.float32, TOLERANCE), (torch.float64, 1e-9)):
        logits = losses(ours.to(dtype), ids, None)
        expected = wrapped.to(dtype)(ids).logits
        torch.testing.assert_close(logits, expected, atol=tolerance, rtol=tolerance)
    logits.square().sum().backward()
    expected.square().sum().backward()
    for value, other in pairs:
        torch.testing.assert_close(value.grad, other.grad, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_any_model_computes_what_transformers_computes(
    single_process: None, tmp_path: Path, kind: str
) -> None:
    theirs, (ids, labels) = saved(tmp_path, kind), batch()
    ours = loaded(tmp_path).train()  # no dropout either
    with torch.no_grad():
        logits = theirs(ids).logits
        torch.testing.assert_close(losses(ours, ids, None), logits, rtol=0, atol=TOLERANCE)
        expected = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
        found = losses(ours, ids, labels)
    torch.testing.assert_close(found, expected.t()[(labels != IGNORE_INDEX).t()], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_comes_back_as_it_was(single_process: None, tmp_path: Path, kind: str) -> None:
    theirs = saved(tmp_path, kind)
    language = read_language_config(tmp_path, HUGGING_FACE)
    written = dict(language_table(language).to_hf(language_weights(tmp_path, language)))
    stored = load_file(tmp_path / "model.safetensors")
    assert written.keys() == stored.keys()
    assert all(written[name].equal(stored[name]) for name in stored)
    (tmp_path / "again").mkdir()
    write_json(tmp_path / "again" / "config.json", HuggingFaceFamily(kind).write(language))
    assert read_language_config(tmp_path / "again", HUGGING_FACE) == language
    assert type(AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path / "again"))) is type(
        theirs
    )


def test_samples_of_one_row_do_not_see_each_other(single_process: None, tmp_path: Path) -> None:
    saved(tmp_path, "gemma2")
    ours, (ids, labels) = loaded(tmp_path), batch()
    lengths = [[5, 9], [14], [4, 3, 5]]
    found = losses(ours, ids, labels, lengths)
    expected = torch.zeros(labels.t().shape)
    for row, of_row in enumerate(lengths):
        for number, length in enumerate([*of_row, 14 - sum(of_row)]):
            first = sum(of_row[:number])
            part = slice(first, first + length)
            alone = labels[row : row + 1, part]
            if length and (alone != IGNORE_INDEX).any():
                expected[part, row][alone[0] != IGNORE_INDEX] = losses(ours, ids[row : row + 1, part], alone)
    torch.testing.assert_close(found, expected[(labels != IGNORE_INDEX).t()], rtol=0, atol=TOLERANCE)
    no_labels = torch.full_like(labels, IGNORE_INDEX)
    assert len(losses(ours, ids, no_labels, lengths)) == 0


@pytest.mark.parametrize("family", ["llama3", "qwen2", "qwen3"])
def test_a_llama_computes_what_megatron_computes(single_process: None, tmp_path: Path, family: str) -> None:
    language_model(family).save_pretrained(tmp_path)
    (ids, labels), gradients = batch(), []
    for backend in (HUGGING_FACE, MEGATRON):
        model = loaded(tmp_path, backend)
        found = losses(model, ids, labels, [[5, 9], [14], [4, 3, 5]])
        found.sum().backward()
        weight = next(weight for name, weight in model.named_parameters() if "embed" in name)
        assert weight.grad is not None
        gradients.append((found.detach(), weight.grad[:133]))
    torch.testing.assert_close(gradients[0][0], gradients[1][0], rtol=0, atol=TOLERANCE)
    # sums over all tokens of a gradient that is 30 at most
    torch.testing.assert_close(gradients[0][1], gradients[1][1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["gpt2", "gemma2"])
def test_answers_are_those_of_transformers(single_process: None, tmp_path: Path, kind: str) -> None:
    theirs = saved(tmp_path, kind)
    decoder = decoder_of(NevaModel(loaded(tmp_path), None, None))
    prompts = [batch()[0][row, : 4 + 3 * row] for row in (0, 1, 2)]
    greedy = Sampling(greedy=True, temperature=1.0, top_k=0, top_p=1.0, repetition_penalty=1.0)
    limits = [Limits(greedy, new, 0, ()) for new in (9, 3, 6)]
    asked = [
        Continuation(number, prompt, torch.empty(0), limits[number], 0, lambda _: False)
        for number, prompt in enumerate(prompts)
    ]
    found = {done.number: done.answer for done in ContinuousBatch(decoder, 2).answers(asked)}
    for number, prompt in enumerate(prompts):
        new = limits[number].max_new_tokens
        answer = theirs.generate(
            prompt[None], max_new_tokens=new, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        assert found[number] == answer[0, len(prompt) :].tolist()
