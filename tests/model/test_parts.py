"""The parts of the model on their own: towers, projector kinds, merge, recomputation, dtypes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModel

from neva.constants import IMAGE_TOKEN_ID
from neva.families.connector import connector_named
from neva.families.vision_sizes import num_layers_run
from neva.model.attention import sliding_window_mask
from neva.model.build import build_model, count_parameters, meta_model
from neva.model.decoder_spec import transformer_config
from neva.model.merge import merge
from neva.model.vision import VisionTower
from tests.model.test_against_transformers import batch, shapes


@pytest.mark.parametrize("select_layer", [-1, -2, 1, 0])
@pytest.mark.parametrize("tower", ["clip", "siglip"])
def test_a_tower_gives_the_selected_hidden_state_of_transformers(tower: str, select_layer: int) -> None:
    shape = replace(shapes(tower, 2, False)[0], select_layer=select_layer)
    ours = VisionTower(shape).eval()
    images = torch.randn(2, 3, 28, 28)
    states = ours.model(images, output_hidden_states=True).hidden_states
    expected = states[select_layer][:, shape.class_token_length :]
    torch.testing.assert_close(ours(images), expected, atol=0, rtol=0)
    assert ours(images).shape == (2, shape.num_tokens, shape.hidden_size)


def test_any_tower_of_transformers_with_hidden_states_serves() -> None:
    shape = replace(
        shapes("clip", 2, False)[0],
        model_type="dinov2",
        hidden_act="gelu",
        ffn_hidden_size=48,
        hidden_size=24,
    )
    ours = VisionTower(shape).eval()
    assert isinstance(ours.model, type(AutoModel.from_config(ours.model.config)))
    images = torch.randn(2, 3, 28, 28)
    expected = ours.model(images, output_hidden_states=True).hidden_states[-2][:, 1:]
    torch.testing.assert_close(ours(images), expected, atol=0, rtol=0)


def test_a_hidden_state_that_is_not_there_is_refused() -> None:
    shape = replace(shapes("clip", 2, False)[0], select_layer=7)
    with pytest.raises(ValueError, match=r"found 7, expected -5..4 for a tower of 4 layers"):
        num_layers_run(shape)


def test_tower_layers_behind_the_selected_one_do_not_train(single_process: None) -> None:
    model = build_model(*shapes("siglip", 2, False), "linear")
    trained = {name for name, parameter in model.vision_tower.named_parameters() if parameter.requires_grad}
    assert any("layers.2." in name for name in trained)
    assert not any(part in name for name in trained for part in ("layers.3.", "post_layernorm", "head"))


def test_projector_kinds() -> None:
    kinds = {"linear": [nn.Linear], "mlp3x_gelu": [nn.Linear, nn.GELU, nn.Linear, nn.GELU, nn.Linear]}
    for kind, layers in kinds.items():
        assert [type(layer) for layer in connector_named(kind).build(8, 16)] == layers
    wide = connector_named("mlp2x_gelu_h24_nobias")
    assert {name: tuple(tensor.shape) for name, tensor in wide.build(8, 16).named_parameters()} == {
        "0.weight": (24, 8),
        "2.weight": (16, 24),
    }
    assert wide.parameter_shapes(8, 16) == {"0.weight": (24, 8), "2.weight": (16, 24)}
    with_bias = connector_named("mlp2x_gelu_h24")
    assert list(with_bias.parameter_shapes(8, 16)) == list(dict(with_bias.build(8, 16).named_parameters()))
    for kind in ("mlp0x_gelu", "mlpx_gelu", "mlp2x_gelu_h0", "mlp3x_gelu_h8", "identities"):
        with pytest.raises(ValueError, match="expected one such as identity, linear, mlp2x_gelu"):
            connector_named(kind).build(8, 16)


def slow_merge(embeddings: Tensor, ids: Tensor, features: Tensor) -> Tensor:
    merged, rows = embeddings.clone(), iter(features)
    for row, column in (ids == IMAGE_TOKEN_ID).nonzero().tolist():
        merged[row, column] = next(rows)
    return merged


def test_merge_equals_a_slow_loop_for_images_at_any_place() -> None:
    ids = torch.arange(30).reshape(3, 10)
    ids[0, 2:5] = ids[0, 6:9] = ids[2, 7:10] = IMAGE_TOKEN_ID
    embeddings, features = torch.randn(3, 10, 4), torch.randn(9, 4)
    assert torch.equal(merge(embeddings, ids, features), slow_merge(embeddings, ids, features))


@pytest.mark.parametrize("images", [1, 3])
def test_merge_refuses_features_that_are_too_few_or_too_many(images: int) -> None:
    ids = torch.full((1, 6), IMAGE_TOKEN_ID)
    with pytest.raises(ValueError, match=rf"6 positions in input_ids, {3 * images} features"):
        merge(torch.zeros(1, 6, 4), ids, torch.zeros(3 * images, 4))


def test_sliding_window_equals_a_slow_loop() -> None:
    mask = sliding_window_mask(4, 7, 3, torch.device("cpu"))
    for query in range(4):
        for key in range(7):
            assert mask[query, key] == (0 <= query + 3 - key < 3)


@pytest.mark.parametrize(
    "switches",
    [
        {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1},
        {"recompute_granularity": "full", "recompute_method": "block", "recompute_num_layers": 2},
        {"recompute_granularity": "selective"},
    ],
    ids=["uniform", "block", "selective"],
)
def test_recomputation_changes_no_number(single_process: None, switches: dict[str, object]) -> None:
    vision, language = shapes("clip", 2, False)
    data = batch(vision.num_tokens)
    plain = build_model(vision, language, "mlp2x_gelu").train()
    recomputing = build_model(
        vision, language, "mlp2x_gelu", transformer_config(language, **switches)
    ).train()
    recomputing.load_state_dict(plain.state_dict())
    for model in (plain, recomputing):
        model(data["input_ids"], data["pixel_values"], data["labels"]).sum().backward()
    for name, parameter in plain.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(
                recomputing.get_parameter(name).grad, parameter.grad, atol=0, rtol=0, msg=name
            )


def test_bfloat16_stays_near_float32(single_process: None) -> None:
    vision, language = shapes("clip", 2, False)
    data = batch(vision.num_tokens)
    exact = build_model(vision, language, "mlp2x_gelu").eval()
    config = transformer_config(
        language, params_dtype=torch.bfloat16, pipeline_dtype=torch.bfloat16, bf16=True
    )
    rough = build_model(vision, language, "mlp2x_gelu", config).eval()
    assert {parameter.dtype for parameter in rough.parameters()} == {torch.bfloat16}
    rough.load_state_dict(exact.state_dict())
    losses = [
        model(data["input_ids"], data["pixel_values"], data["labels"]).mean() for model in (exact, rough)
    ]
    assert losses[1].dtype == torch.float32
    # bfloat16 has 8 significant bits; a dozen layers lose two of them
    torch.testing.assert_close(losses[1], losses[0], atol=0, rtol=2**-6)


def test_a_meta_model_counts_like_a_real_one(single_process: None) -> None:
    vision, language = shapes("siglip", 2, True)
    assert count_parameters(meta_model(vision, language, "mlp2x_gelu")) == count_parameters(
        build_model(vision, language, "mlp2x_gelu")
    )
