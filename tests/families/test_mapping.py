"""Mappings work in both directions, and a table consumes and produces every tensor exactly once."""

from dataclasses import replace

import pytest
import torch

from neva.families.connector import projector_table
from neva.families.decoder_rules import FusedQKV, GatedMLP, PaddedVocab
from neva.families.language import language_config_from_hf, language_table
from neva.families.mapping import ConversionError, Rename, Table
from neva.families.naming import LLAVA_HF, LLAVA_ORIGINAL
from neva.families.vision_reading import vision_config_from_hf
from neva.families.vision_table import tower_shapes, tower_table
from tests.convert.tiny import FAMILIES, language_model, tower


def test_fused_qkv_lays_rows_out_per_query_group():
    rule = FusedQKV(("q", "k", "v"), "qkv", heads=6, groups=2, head_dim=4, columns=(5,))
    q, k, v = torch.randn(24, 5), torch.randn(8, 5), torch.randn(8, 5)
    ((name, fused),) = rule.to_native({"q": q, "k": k, "v": v})
    by_hand = torch.cat([q[:12], k[:4], v[:4], q[12:], k[4:], v[4:]])
    assert name == "qkv"
    assert torch.equal(fused, by_hand)
    back = dict(rule.to_hf({"qkv": fused}))
    assert all(torch.equal(back[part], tensor) for part, tensor in (("q", q), ("k", k), ("v", v)))


def test_gated_mlp_is_gate_above_up():
    rule = GatedMLP(("gate", "up"), "fc1", (3, 2))
    gate, up = torch.randn(3, 2), torch.randn(3, 2)
    ((_, fused),) = rule.to_native({"gate": gate, "up": up})
    assert torch.equal(fused, torch.cat([gate, up]))
    assert torch.equal(dict(rule.to_hf({"fc1": fused}))["up"], up)


def test_vocabulary_is_padded_here_and_extended_there():
    rule = PaddedVocab("embed", "native", vocab=3, native_rows=8, hf_rows=4, hidden=2, fill_row=1)
    native = torch.randn(8, 2)
    ((_, rows),) = rule.to_hf({"native": native})
    assert torch.equal(rows, native[[0, 1, 2, 1]])
    ((_, back),) = rule.to_native({"embed": rows})
    assert torch.equal(back[:3], native[:3])
    assert not back[3:].any()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_language_round_trip_is_bit_equal_and_complete(family, dtype):
    model = language_model(family).to(dtype)
    weights = dict(model.state_dict())
    shape = replace(language_config_from_hf(model.config.to_dict()), padded_vocab_size=256)
    table = language_table(shape)
    native = dict(table.to_native(weights))
    assert native["language_model.embedding.word_embeddings.weight"].shape == (256, 36)
    back = dict(table.to_hf(native))
    assert set(back) == set(weights) - ({"lm_head.weight"} if shape.tied else set())
    assert all(torch.equal(back[name], weights[name]) and back[name].dtype == dtype for name in back)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
@pytest.mark.parametrize("layout", [LLAVA_HF, LLAVA_ORIGINAL])
def test_tower_round_trip_has_transformers_own_names(kind, layout):
    model = tower(kind)
    shape = vision_config_from_hf(model.config.to_dict())
    shapes = tower_shapes(shape, pooling_head=True)
    assert shapes == {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
    table = tower_table(shapes, layout.tower)
    stored = {layout.tower + name: tensor for name, tensor in model.named_parameters()}
    native = dict(table.to_native(stored))
    assert set(native) == {f"vision_tower.model.{name}" for name in shapes}
    back = dict(table.to_hf(native))
    assert all(torch.equal(back[name], stored[name]) for name in stored)


def test_projector_names_of_both_layouts():
    assert projector_table("mlp2x_gelu", 8, 12, LLAVA_HF).hf_names == [
        f"multi_modal_projector.linear_{n}.{kind}" for n in (1, 2) for kind in ("weight", "bias")
    ]
    assert projector_table("mlp3x_gelu", 8, 12, LLAVA_ORIGINAL).hf_names[-1] == "model.mm_projector.4.bias"
    assert projector_table("linear", 8, 12, LLAVA_ORIGINAL).hf_names == [
        "model.mm_projector.weight",
        "model.mm_projector.bias",
    ]
    assert projector_table("mlp2x_gelu", 8, 12, LLAVA_HF).native_names[2] == "projector.2.weight"
    with pytest.raises(ValueError, match="holds an mlp2x_gelu projector, this one is mlp3x_gelu"):
        projector_table("mlp3x_gelu", 8, 12, LLAVA_HF)


class TestErrorsNameTheTensor:
    table = Table((Rename("a", "x", (2,)), Rename("b", "y", (2,))), ignored=(r".*\.inv_freq",))

    def test_unknown_source(self):
        with pytest.raises(ConversionError, match="no place in this model: c"):
            self.table.to_native({"a": torch.ones(2), "b": torch.ones(2), "c": torch.ones(2)})

    def test_missing_source(self):
        with pytest.raises(ConversionError, match="missing: y"):
            self.table.to_hf({"x": torch.ones(2)})

    def test_shape(self):
        with pytest.raises(ConversionError, match=r"b has shape \[3\], the configuration expects \[2\]"):
            dict(self.table.to_native({"a": torch.ones(2), "b": torch.ones(3)}))

    def test_twice(self):
        with pytest.raises(ConversionError, match="x more than once"):
            Table((Rename("a", "x", (2,)), Rename("b", "x", (2,))))

    def test_ignored_buffers_are_skipped(self):
        source = {"a": torch.ones(2), "b": torch.ones(2), "layers.0.inv_freq": torch.ones(1)}
        assert set(dict(self.table.to_native(source))) == {"x", "y"}

    def test_tied_head_that_differs(self):
        model = language_model("smollm2")
        weights = dict(model.state_dict())
        weights["lm_head.weight"] = weights["lm_head.weight"] + 1
        with pytest.raises(ConversionError, match="lm_head.weight differs"):
            dict(language_table(language_config_from_hf(model.config.to_dict())).to_native(weights))
