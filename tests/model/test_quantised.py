"""Packed matrices beside adapters: what they lose, what they compute, and that evaluation takes no gradient away."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BitsAndBytesConfig, LlavaForConditionalGeneration

from neva.config.keys.peft import INT8, NF4
from neva.inference.decoder import Decoder
from neva.model.build import build_model
from neva.model.quantised import quantise
from neva.planner.tensors import ModelSpec, Split, stage_weights
from tests.model.test_adapters import built, lora, twin  # noqa: F401
from tests.model.test_against_transformers import (
    VOCAB,
    batch,
    copy_weights,
    reference,
    reference_inputs,
    shapes,
)

SITES = ("self_attention.linear_qkv", "self_attention.linear_proj", "mlp.linear_fc1", "mlp.linear_fc2")


@pytest.mark.parametrize(
    ("kind", "largest", "share"), [(NF4, 0.1, 1 / 8 + 1 / 64), (INT8, 0.01, 1 / 4 + 1 / 40)]
)
def test_a_packed_model_computes_what_its_unpacked_weights_do(
    single_process: None,
    twin: Any,  # noqa: F811
    kind: str,
    largest: float,
    share: float,
) -> None:
    """Rounding is nf4's and int8's; the products are those of the rounded weights, in both directions."""
    packed, plain = (built(twin, replace(lora(["all"], "canonical"), packing=kind)).train() for _ in range(2))
    quantise(packed, kind)
    for ours, theirs in zip(
        packed.language_model.decoder.layers, plain.language_model.decoder.layers, strict=True
    ):
        for site in SITES:
            matrix, other = ours.get_submodule(site), theirs.get_submodule(site)
            rounded = matrix.packed.unpacked(matrix.weight, matrix.scales)
            error = (rounded - other.weight).norm() / other.weight.norm()
            assert 1e-4 < error < largest, (site, error)
            held = matrix.weight.numel() * 4 + matrix.scales.numel() * 4
            assert held <= share * other.weight.numel() * 4, "bytes of float32 weights"
            other.weight.data.copy_(rounded)
    matrices = [layer.get_submodule(site) for layer in packed.language_model.decoder.layers for site in SITES]
    held_bytes = 4 * sum(value.numel() for value in packed.language_model.parameters())
    held_bytes += 4 * sum(matrix.scales.numel() for matrix in matrices)
    language = replace(twin[1], lora=replace(lora(["all"], "canonical"), packing=kind))
    spec = ModelSpec(twin[0], language, "mlp2x_gelu", 128, frozenset({"adapters", "projector"}))
    planned = [w for w in stage_weights(spec, Split(1, 1, 0)) if w.part in ("language_model", "adapters")]
    assert sum(weight.bytes_of(weight.numel, 4) for weight in planned) == held_bytes

    data = batch(twin[0].num_tokens)
    inputs = (data["input_ids"], data["pixel_values"], data["labels"])
    losses = [model(*inputs) for model in (packed, plain)]
    torch.testing.assert_close(*losses, atol=1e-6, rtol=1e-6)  # float32 sums in another order
    for loss in losses:
        loss.sum().backward()
    expected = dict(plain.named_parameters())
    for name, parameter in packed.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, expected[name].grad, atol=1e-5, rtol=1e-4)


def test_nf4_computes_what_a_folder_does_that_transformers_loads_in_four_bits(
    single_process: None, tmp_path: Path
) -> None:
    """Rows are whole blocks: joined matrices are rounded as single ones are, and bitsandbytes unpacks them rightly.

    (In rows that end inside a block its kernel for AVX-512 errs. In eval mode it repacks for bfloat16 where it can.)
    """
    vision, language = shapes("clip", 2, False)
    language = replace(language, hidden_size=64, ffn_hidden_size=128, num_heads=8)
    exact = reference(vision, language)
    ours = build_model(vision, language, "mlp2x_gelu").eval().requires_grad_(False)
    copy_weights(ours, exact)
    quantise(ours, NF4)
    exact.save_pretrained(tmp_path)
    theirs = LlavaForConditionalGeneration.from_pretrained(
        tmp_path,
        device_map="cpu",
        dtype=torch.float32,
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=torch.float32,
            llm_int8_skip_modules=["model.vision_tower", "model.multi_modal_projector", "lm_head"],
        ),
    ).train()
    data = batch(vision.num_tokens)
    with torch.no_grad():
        found = ours(data["input_ids"], data["pixel_values"])
        expected, unpacked = (
            model(**reference_inputs(data)).logits[..., :VOCAB] for model in (theirs, exact)
        )
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)  # float32 sums in another order
    assert (expected - unpacked).norm() / unpacked.norm() > 0.01, "packing shows"


def test_adapters_learn_after_an_answer_in_eval_mode(single_process: None, twin: Any) -> None:  # noqa: F811
    """bitsandbytes' own modules repack their weights there and give adapters no gradient from then on."""
    model = built(twin, replace(lora(["all"], "nemo"), packing=NF4))
    quantise(model, NF4)
    data = batch(twin[0].num_tokens)
    prompt, pixels = data["input_ids"][0], data["pixel_values"][:1]
    with torch.no_grad():
        expected = model.eval()(prompt[None], pixels)[0, -1]
        decoder = Decoder(model)
        found = decoder.prefill(decoder.cache(1), [0], [prompt], [model.encode_images(pixels)], room=1)
    torch.testing.assert_close(found[0], expected, atol=1e-5, rtol=1e-5)
    model.train()(data["input_ids"], data["pixel_values"], data["labels"]).sum().backward()
    assert all(
        value.grad is not None and value.grad.any()
        for n, value in model.named_parameters()
        if ".adapter." in n
    )
