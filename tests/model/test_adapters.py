"""Logits and gradients of adapters against peft on the Hugging Face twin, with copied factors."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import peft
import pytest
import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from neva.config.peft import lora_of
from neva.constants import ADAPTERS, PROJECTOR
from neva.families.adapters import GATE_UP, QKV, WHOLE, adapter_shapes
from neva.families.configs import LanguageConfig, LoraConfig, VisionConfig
from neva.inference.decoder import Decoder
from neva.model import adapters, dora
from neva.model.adapted import fill_magnitudes
from neva.model.build import build_language_model, build_model, count_parameters, set_trainable
from neva.model.decoder_spec import transformer_config
from neva.model.llava import NevaModel
from tests.model.test_against_transformers import (
    VOCAB,
    batch,
    copy_weights,
    reference,
    reference_inputs,
    shapes,
)

RANK, ALPHA = 3, 5.0
PEFT_NAMES = {"linear_in": "lora_A", "linear_out": "lora_B", "magnitude": "lora_magnitude_vector"}
HF_NAMES = {
    "self_attention.linear_qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attention.linear_proj": ("self_attn.o_proj",),
    "mlp.linear_fc1": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.linear_fc2": ("mlp.down_proj",),
}


def lora(targets: list[str], variant: str, scheme: str = "lora", **changes: Any) -> LoraConfig:
    tuning = {
        "variant": variant, "target_modules": targets, "adapter_dim": RANK, "alpha": ALPHA, "adapter_dropout": 0.0,
        "dropout_position": "pre", "column_init_method": "xavier", "row_init_method": "normal", "layer_selection": None,
    }  # fmt: skip
    found = lora_of({"peft": {"peft_scheme": scheme, "lora_tuning": tuning | changes}})
    assert found is not None
    return found


@pytest.fixture(scope="module")
def twin() -> tuple[VisionConfig, LanguageConfig, Any]:
    vision, language = shapes("clip", 2, False)
    return vision, language, reference(vision, language)


def built(twin: Any, chosen: LoraConfig, **switches: Any) -> NevaModel:
    """Our model with the twin's weights, and adapters drawn away from zero, lengths from those that rows have.

    What stands beside all matrices stands beside all of the tower's, too, and beside two of them with some.
    """
    vision, language, theirs = twin
    language = replace(language, lora=chosen)
    beside = {4: ("all",), 3: ("fc2", "out_proj")}.get(len(chosen.sites), ())
    with_tower = replace(
        vision, lora=replace(chosen, sites=tuple((name, (WHOLE,)) for name in beside), layers=None)
    )
    model = build_model(with_tower, language, "mlp2x_gelu", transformer_config(language, **switches))
    drawn = {name: value.detach().clone() for name, value in model.named_parameters() if ".adapter." in name}
    without = build_model(vision, replace(language, lora=None), "mlp2x_gelu")
    copy_weights(without, theirs)
    model.load_state_dict({**without.state_dict(), **drawn})
    fill_magnitudes(model)
    draw = torch.Generator().manual_seed(5)
    for name, value in model.named_parameters():
        if name.endswith(".magnitude"):
            value.data.mul_(1 + 0.3 * torch.rand(len(value), generator=draw))
    set_trainable(model, {ADAPTERS, PROJECTOR})
    return model


def per_piece(language: LanguageConfig, name: str, tensor: Tensor) -> list[tuple[str, Tensor]]:
    """A factor, or its gradient, by the names of the layer's matrices in Hugging Face; written out row by row."""
    if name.startswith("vision_tower."):
        return [(name.removeprefix("vision_tower.model.").partition(".adapter.")[0], tensor)]
    site, _, piece = name.rpartition(".adapter.")[0].split(".", 4)[4], None, name.split(".")[-2]
    hf, is_input = HF_NAMES[site], name.endswith("linear_in")
    if piece != WHOLE or len(hf) == 1:
        chosen = [full for full in hf if piece == WHOLE or full.endswith(f"{piece}_proj")]
        return [(chosen[0], tensor)]
    if is_input:
        return [(full, tensor) for full in hf]
    if site == GATE_UP:
        half = len(tensor) // 2
        return [(hf[0], tensor[:half]), (hf[1], tensor[half:])]
    assert site == QKV
    heads, size = language.num_heads // language.num_query_groups, language.head_dim
    rows: dict[str, list[Tensor]] = {full: [] for full in hf}
    for group in range(language.num_query_groups):
        first = group * (heads + 2) * size
        rows[hf[0]].append(tensor[first : first + heads * size])
        rows[hf[1]].append(tensor[first + heads * size : first + (heads + 1) * size])
        rows[hf[2]].append(tensor[first + (heads + 1) * size : first + (heads + 2) * size])
    return [(full, torch.cat(parts)) for full, parts in rows.items()]


def prefix(name: str) -> str:
    if name.startswith("vision_tower."):
        return "model.vision_tower."
    return f"model.language_model.layers.{name.split('.')[3]}."


def wrapped(twin: Any, ours: NevaModel, language: LanguageConfig, **settings: Any) -> Any:
    """The twin in peft, with our factors."""
    factors = {name: value for name, value in ours.named_parameters() if ".adapter." in name}
    by_module: dict[str, dict[str, Tensor]] = {}
    for name, value in factors.items():
        for module, part in per_piece(language, name, value.detach()):
            kind = PEFT_NAMES[name.rpartition(".")[2]]
            by_module.setdefault(prefix(name) + module, {})[kind] = part
    has_magnitudes = any("lora_magnitude_vector" in parts for parts in by_module.values())
    config = peft.LoraConfig(
        r=RANK, lora_alpha=ALPHA, target_modules=list(by_module), use_dora=has_magnitudes, **settings
    )
    model = peft.get_peft_model(copy.deepcopy(twin[2]), config)
    for module, parts in by_module.items():
        for kind, part in parts.items():
            layer = model.base_model.model.get_submodule(module)
            getattr(layer, kind)["default"].weight.data.copy_(part)
    return model


VARIANTS = ("nemo", "canonical")
TARGETS = [["attention_qkv"], ["attention_dense"], ["mlp_fc1"], ["mlp_fc2"], ["all"]]
CASES = [("lora", variant, targets) for variant in VARIANTS for targets in TARGETS]
CASES += [("lora", "canonical", ["q_proj", "v_proj", "up_proj"])]
CASES += [("dora", "nemo", ["all"]), ("dora", "canonical", ["q_proj", "v_proj", "up_proj", "down_proj"])]


@pytest.mark.parametrize(
    ("scheme", "variant", "targets"), CASES, ids=[f"{s}-{v}-{'-'.join(t)}" for s, v, t in CASES]
)
def test_logits_and_gradients_equal_those_of_peft(
    single_process: None,
    twin: Any,
    monkeypatch: pytest.MonkeyPatch,
    scheme: str,
    variant: str,
    targets: list[str],
) -> None:
    """float32 differs by the order of sums; float64 leaves 1e-9 of them in gradients of order 1."""
    chosen = lora(targets, variant, scheme)
    ours, data = built(twin, chosen).eval(), batch(twin[0].num_tokens)
    theirs = wrapped(twin, ours, twin[1])
    logits = ours(data["input_ids"], data["pixel_values"])
    expected = theirs(**reference_inputs(data)).logits[..., :VOCAB]
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    plain = twin[2](**reference_inputs(data)).logits[..., :VOCAB]
    assert (expected - plain).abs().max() > 0.01, "the adapter does nothing"

    monkeypatch.setattr(LlamaRMSNorm, "forward", exact_norm)
    exact, expected_exact = ours.double(), theirs.double()
    exact.config.params_dtype = torch.float64
    pixels = data["pixel_values"].double()
    target = torch.randn(logits.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    (exact(data["input_ids"], pixels) * target).sum().backward()
    inputs = {**reference_inputs(data), "pixel_values": pixels}
    (expected_exact(**inputs).logits[..., :VOCAB] * target).sum().backward()
    compare_gradients(exact, expected_exact, twin[1])
    projector = expected_exact.base_model.model.model.multi_modal_projector
    assert projector.linear_1.weight.grad is None, "peft freezes it"
    assert exact.projector[0].weight.grad is not None and exact.language_model.output_weight.grad is None


def exact_norm(self: LlamaRMSNorm, hidden: Tensor) -> Tensor:
    """transformers' casts to float32 whatever the model is."""
    return torch.nn.functional.rms_norm(hidden, self.weight.shape, self.weight, self.variance_epsilon)


def compare_gradients(ours: NevaModel, theirs: Any, language: LanguageConfig) -> None:
    compared = 0
    for name, parameter in ours.named_parameters():
        if ".adapter." not in name:
            continue
        kind = PEFT_NAMES[name.rpartition(".")[2]]
        parts = per_piece(language, name, parameter.grad)
        found = [
            getattr(theirs.base_model.model.get_submodule(prefix(name) + module), kind)["default"].weight.grad
            for module, _ in parts
        ]
        if kind == "lora_A" and len(parts) > 1:  # one factor here, several there: its gradient is their sum
            parts, found = parts[:1], [torch.stack(found).sum(0)]
        for (_, part), expected in zip(parts, found, strict=True):
            torch.testing.assert_close(part, expected, atol=1e-9, rtol=1e-9)
            compared += 1
    assert compared


@pytest.mark.parametrize("mutation", ["scale", "groups", "halves", "length"])
def test_the_comparison_sees_a_wrong_adapter(
    single_process: None, twin: Any, monkeypatch: pytest.MonkeyPatch, mutation: str
) -> None:
    if mutation == "scale":
        monkeypatch.setattr(LoraConfig, "scale", 1.0)
    joined = adapters.Adapter._joined

    def wrong(self: Any, pieces: Any) -> Tensor:
        if mutation == "groups" and self.site == QKV:
            return torch.cat([pieces[name] for name in "qkv"], -1)
        if mutation == "halves" and self.site == GATE_UP:
            return torch.cat([pieces["up"], pieces["gate"]], -1)
        return joined(self, pieces)

    monkeypatch.setattr(adapters.Adapter, "_joined", wrong)
    if mutation == "length":  # the length has a gradient, as the paper's equation has and its method has not
        monkeypatch.setattr(dora, "length", dora.length.__wrapped__)
    scheme, targets = ("dora", ["o_proj"]) if mutation == "length" else ("lora", ["all"])
    with pytest.raises(AssertionError, match="not close"):
        test_logits_and_gradients_equal_those_of_peft(
            single_process, twin, monkeypatch, scheme, "canonical", targets
        )


@pytest.mark.parametrize("mutation", [None, "place"])
@pytest.mark.parametrize("position", ["pre", "post"])
def test_dropout_falls_on_the_input_or_on_what_is_added(
    single_process: None, twin: Any, position: str, mutation: str | None
) -> None:
    """Of one layer alone: a half of the elements is zero and the others are doubled, before or behind the factors."""
    chosen = lora(["mlp_fc2"], "nemo", adapter_dropout=0.5, dropout_position=position)
    if mutation is not None:
        chosen = replace(chosen, drops_input=not chosen.drops_input)
    layer = built(twin, chosen).language_model.decoder.layers[1].mlp.linear_fc2
    hidden, factors = torch.randn(4, 2, 80), layer.adapter.whole
    torch.manual_seed(7)
    found = layer.train()(hidden)[0] - layer.eval()(hidden)[0] + layer.adapter(hidden)
    torch.manual_seed(7)
    where = hidden.shape if position == "pre" else (4, 2, 48)
    mask = torch.empty(where, dtype=torch.bool).bernoulli_(0.5) * 2
    narrow = (hidden * mask if position == "pre" else hidden) @ factors.linear_in.t()
    expected = narrow @ factors.linear_out.t() * ALPHA / RANK * (1 if position == "pre" else mask)
    with nullcontext() if mutation is None else pytest.raises(AssertionError, match="not close"):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("position", ["pre", "post"])
def test_dropout_with_learnt_lengths_keeps_the_frozen_product_whole_and_a_bias_as_it_is(
    single_process: None, twin: Any, position: str
) -> None:
    """Of one matrix with a bias, keys without factors: W x + (m / n - 1) W d(x) + m / n B A d(x), as peft has it."""
    chosen = lora(["q_proj", "v_proj"], "canonical", "dora", adapter_dropout=0.5, dropout_position=position)
    config = replace(twin[1], lora=chosen, qkv_bias=True)
    layer = build_language_model(config).decoder.layers[0].self_attention.linear_qkv.train()
    layer.adapter.measure(layer)
    with torch.no_grad():
        layer.bias.copy_(torch.arange(len(layer.bias)) / 10)
        for piece in "qv":
            layer.adapter.factors(piece).magnitude.mul_(1.2)
    hidden, groups, size = torch.randn(5, 2, config.hidden_size), config.num_query_groups, config.head_dim
    torch.manual_seed(7)
    found = layer(hidden)[0].unflatten(-1, (groups, -1, size))
    torch.manual_seed(7)
    weight, bias = (each.unflatten(0, (groups, -1, size)) for each in (layer.weight, layer.bias))
    heads = config.num_heads // groups
    for piece, which in (
        ("q", slice(0, heads)),
        ("v", slice(heads + 1, None)),
        (None, slice(heads, heads + 1)),
    ):
        rows, shift = weight[:, which].flatten(0, 2), bias[:, which].flatten()
        expected = hidden @ rows.t()
        if piece is not None:
            factors = layer.adapter.factors(piece)
            product = factors.linear_out @ factors.linear_in * ALPHA / RANK
            stretch = factors.magnitude / (rows + product).norm(dim=1)
            mask = torch.empty(hidden.shape if position == "pre" else expected.shape, dtype=torch.bool)
            mask = mask.bernoulli_(0.5) * 2
            if position == "pre":
                seen = hidden * mask
                expected = expected + (stretch - 1) * (seen @ rows.t()) + stretch * (seen @ product.t())
            else:
                expected = stretch * (expected + hidden @ product.t() * mask)
        torch.testing.assert_close(found[..., which, :].flatten(2), expected + shift, atol=1e-4, rtol=1e-5)


def test_only_the_chosen_layers_have_adapters(single_process: None, twin: Any) -> None:
    chosen = lora(["attention"], "canonical", layer_selection=[1, 3])
    model = built(twin, chosen)
    found = {name: tuple(value.shape) for name, value in model.named_parameters() if ".adapter." in name}
    expected = dict(adapter_shapes(replace(twin[1], lora=chosen)))
    assert found == expected and {name.split(".")[3] for name in found} == {"0", "2"}
    numbers = sum(value.numel() for value in model.parameters() if value.requires_grad)
    counts = count_parameters(model)
    assert counts[ADAPTERS] == (sum(a * b for a, b in expected.values()),) * 2
    assert numbers == counts[ADAPTERS][1] + counts[PROJECTOR][1]


@pytest.mark.parametrize("recompute", ["full", "selective"])
def test_recomputing_trains_adapters_alone_with_the_same_gradients(
    single_process: None, twin: Any, recompute: str
) -> None:
    """No input of the first layer needs a gradient, so that torch's checkpointing would compute none."""
    chosen, data = lora(["all"], "nemo"), batch(twin[0].num_tokens)
    method = {"recompute_method": "uniform", "recompute_num_layers": 1} if recompute == "full" else {}
    gradients = []
    for switches in ({}, {"recompute_granularity": recompute, **method}):
        model = built(twin, chosen, **switches).train()
        set_trainable(model, {ADAPTERS})
        model(data["input_ids"], data["pixel_values"], data["labels"]).sum().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    plain, recomputed = gradients
    assert all(value is not None for value in recomputed.values())
    for name, value in plain.items():
        torch.testing.assert_close(recomputed[name], value, atol=0, rtol=0)


@pytest.mark.parametrize("scheme", ["lora", "dora"])
def test_generation_applies_the_adapter(single_process: None, twin: Any, scheme: str) -> None:
    model = built(twin, lora(["all"], "canonical", scheme)).eval()
    data = batch(twin[0].num_tokens)
    prompt, pixels = data["input_ids"][0], data["pixel_values"][:1]
    with torch.no_grad():
        expected = model(prompt[None], pixels)[0, -1]
        decoder = Decoder(model)
        found = decoder.prefill(decoder.cache(1), [0], [prompt], [model.encode_images(pixels)], room=1)
    torch.testing.assert_close(found[0], expected, atol=1e-5, rtol=1e-5)
