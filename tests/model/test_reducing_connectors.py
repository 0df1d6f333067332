"""Connectors that make fewer positions than there are patches, beside transformers and beside slow loops."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from transformers import Blip2Config, Blip2ForConditionalGeneration, Idefics2Config, InternVLConfig
from transformers.models.idefics2.modeling_idefics2 import Idefics2Connector
from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector
from transformers.models.internvl.modeling_internvl import InternVLModel, InternVLMultiModalProjector

from neva.constants import IMAGE_TOKEN_ID
from neva.errors import CheckpointError, ConfigError
from neva.families.connector import Connector, connector_named, projector_table
from neva.families.media_tokens import media_rules
from neva.families.naming import LLAVA_HF, LLAVA_ORIGINAL
from neva.families.own_shapes import KeptShape
from neva.families.tile_grids import DynamicTiles
from neva.model.build import build_model, meta_model
from neva.planner.tensors import PROJECTOR, ModelSpec, Split, stage_weights
from tests.model.test_against_transformers import shapes

WIDTH, HIDDEN = 24, 32
KINDS = [
    "pixel_shuffle2_linear_nobias",
    "pixel_shuffle2_ln_mlp2x_gelu",
    "concat4_ln_mlp2x_silu",
    "concat1_linear",
    "bilinear3x2_mlp2x_gelu",
    "perceiver_n5_d2_h4x6_g2_m20",
    "perceiver_n3_d1_h4x8_separate",
    "qformer_n5_d3_h2x7_m20",
    "cabstractor_n9_d2_w20",
    "cabstractor_n16_d1_w24",
]


def filled(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module.eval()


def built(kind: str) -> nn.Module:
    return filled(connector_named(kind).build(WIDTH, HIDDEN))


def test_pixel_shuffle_is_idefics3s() -> None:
    config = SimpleNamespace(
        scale_factor=2,
        vision_config=SimpleNamespace(hidden_size=WIDTH),
        text_config=SimpleNamespace(hidden_size=HIDDEN),
    )
    ours, theirs = built("pixel_shuffle2_linear_nobias"), Idefics3Connector(config)
    theirs.load_state_dict({"modality_projection.proj.weight": ours.state_dict()["0.weight"]})
    features = torch.randn(3, 36, WIDTH)
    torch.testing.assert_close(ours(features), theirs(features), atol=1e-6, rtol=1e-6)


def test_pixel_shuffle_with_norm_and_two_layers_is_internvls() -> None:
    config = InternVLConfig(vision_config={"hidden_size": WIDTH}, text_config={"hidden_size": HIDDEN})
    ours, theirs = built("pixel_shuffle2_ln_mlp2x_gelu"), InternVLMultiModalProjector(config).eval()
    names = {"0": "layer_norm", "1": "linear_1", "3": "linear_2"}
    weights = ours.state_dict().items()
    theirs.load_state_dict({names[name[0]] + name[1:]: weight for name, weight in weights})
    features = torch.randn(3, 36, WIDTH)
    shuffled = InternVLModel.pixel_shuffle(None, features.view(3, 6, 6, WIDTH)).reshape(3, 9, -1)
    torch.testing.assert_close(ours(features), theirs(shuffled), atol=1e-6, rtol=1e-6)


def test_a_perceiver_is_idefics2s() -> None:
    perceiver = {
        "hidden_size": HIDDEN, "resampler_n_latents": 5, "resampler_depth": 2, "resampler_n_heads": 4,
        "resampler_head_dim": 6, "num_key_value_heads": 2, "rms_norm_eps": 1e-6,
    }  # fmt: skip
    config = Idefics2Config(
        vision_config={"hidden_size": WIDTH, "num_attention_heads": 2},
        text_config={"hidden_size": HIDDEN, "intermediate_size": 20, "num_attention_heads": 4},
        perceiver_config=perceiver,
    )
    ours, theirs = built("perceiver_n5_d2_h4x6_g2_m20"), Idefics2Connector(config).eval()
    theirs.load_state_dict({idefics2_name(name): weight for name, weight in ours.state_dict().items()})
    features = torch.randn(3, 11, WIDTH)
    expected = theirs(features, torch.ones(3, 11))
    torch.testing.assert_close(ours(features), expected, atol=1e-5, rtol=1e-5)


def idefics2_name(name: str) -> str:
    if name.startswith("modality_projection."):
        return name
    for part in ("q_proj", "k_proj", "v_proj", "o_proj"):
        name = name.replace(f".{part}", f".self_attn.{part}")
    return f"perceiver_resampler.{name}"


def test_latents_that_see_the_features_alone_are_those_of_a_slow_loop() -> None:
    ours = built("perceiver_n3_d1_h4x8_separate")
    features = torch.randn(2, 7, WIDTH)
    context = ours.modality_projection(features)
    (layer,) = ours.layers
    rows = []
    for tile in range(2):
        latents, seen = layer.input_latents_norm(ours.latents), layer.input_context_norm(context[tile])
        heads = []
        for head in range(4):
            rows_of = slice(8 * head, 8 * head + 8)
            query = latents @ layer.q_proj.weight[rows_of].T
            key, value = seen @ layer.k_proj.weight[rows_of].T, seen @ layer.v_proj.weight[rows_of].T
            heads.append((query @ key.T / 8**0.5).softmax(-1) @ value)
        found = ours.latents + torch.cat(heads, -1) @ layer.o_proj.weight.T
        rows.append(ours.norm(found + layer.mlp(layer.post_attention_layernorm(found))))
    torch.testing.assert_close(ours(features), torch.stack(rows), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("every", ["", "_e1"])
def test_a_q_former_is_blip_2s(every: str) -> None:
    ours = built(f"qformer_n5_d3_h2x7_m20{every}")
    sizes = {"num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 20, "hidden_size": 14}
    config = Blip2Config(
        vision_config={"hidden_size": WIDTH, "num_attention_heads": 2, "num_hidden_layers": 1},
        qformer_config={
            **sizes,
            "encoder_hidden_size": WIDTH,
            "cross_attention_frequency": 1 if every else 2,
        },
        text_config={
            "model_type": "opt",
            "hidden_size": HIDDEN,
            "word_embed_proj_dim": HIDDEN,
            "num_attention_heads": 2,
        },
        num_query_tokens=5,
    )
    theirs = Blip2ForConditionalGeneration(config).eval()
    theirs.language_projection = nn.Linear(14, HIDDEN)
    lacking = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert not lacking.unexpected_keys and not any("qformer" in name for name in lacking.missing_keys)
    features = torch.randn(3, 11, WIDTH)
    queries = theirs.query_tokens.expand(3, -1, -1)
    seen = theirs.qformer(queries, encoder_hidden_states=features, encoder_attention_mask=torch.ones(3, 11))
    torch.testing.assert_close(ours(features), theirs.language_projection(seen[0]), atol=1e-5, rtol=1e-5)


def test_convolutions_of_an_abstractor_are_those_of_slow_loops() -> None:
    ours, features = built("cabstractor_n4_d2_w20"), torch.randn(1, 16, WIDTH)
    found = features[0].view(4, 4, WIDTH)
    for block in ours.before:
        found = reg_block(block, found)
    smaller = torch.stack(
        [found[2 * y : 2 * y + 2, 2 * x : 2 * x + 2].mean((0, 1)) for y in (0, 1) for x in (0, 1)]
    )
    found = smaller.view(2, 2, 20)
    for block in ours.after:
        found = reg_block(block, found)
    torch.testing.assert_close(ours(features)[0], ours.readout(found.flatten(0, 1)), atol=1e-5, rtol=1e-5)


def reg_block(block: nn.Module, grid: Tensor) -> Tensor:
    """RegNet-Y's block on a map [rows, columns, channels], a place at a time."""
    rows, columns = grid.shape[:2]

    def norm(name: str, at: Tensor) -> Tensor:
        of = getattr(block, f"{name}_norm")
        return (at - at.mean()) / (at.var(unbiased=False) + 1e-6).sqrt() * of.weight + of.bias

    def mixed(name: str, at: Tensor) -> Tensor:
        return norm(name, getattr(block, name).weight[:, :, 0, 0] @ at)

    def silu(at: Tensor) -> Tensor:
        return at * torch.sigmoid(at)

    places = [(y, x) for y in range(rows) for x in range(columns)]
    wide = {place: silu(mixed("expand", grid[place])) for place in places}
    near = {}
    for y, x in places:
        around = [
            (y + down, x + across, down + 1, across + 1) for down in (-1, 0, 1) for across in (-1, 0, 1)
        ]
        kernel = block.depthwise.weight[:, 0]
        total = sum(kernel[:, k, j] * wide[v, u] for v, u, k, j in around if (v, u) in wide)
        near[y, x] = silu(norm("depthwise", total))
    mean = sum(near.values()) / len(places)
    squeezed = silu(block.squeeze.weight[:, :, 0, 0] @ mean + block.squeeze.bias)
    gate = torch.sigmoid(block.excite.weight[:, :, 0, 0] @ squeezed + block.excite.bias)
    kept = {at: mixed("shortcut", grid[at]) if block.has_shortcut else grid[at] for at in places}
    return torch.stack([silu(mixed("reduce", near[at] * gate) + kept[at]) for at in places]).view(
        rows, columns, -1
    )


def test_concatenation_puts_neighbours_side_by_side() -> None:
    ours, features = built("concat4_ln_mlp2x_silu"), torch.randn(2, 12, WIDTH)
    norm, into, _, out = ours
    slow = []
    for tile in features:
        for first in range(0, 12, 4):
            joined = norm(torch.cat([tile[first + at] for at in range(4)]))
            inner = into(joined)
            slow.append(out(inner * torch.sigmoid(inner)))
    torch.testing.assert_close(ours(features).flatten(0, 1), torch.stack(slow), atol=1e-5, rtol=1e-5)


def test_a_map_is_made_smaller_bilinearly() -> None:
    ours, features = built("bilinear3x2_mlp2x_gelu"), torch.randn(2, 16, WIDTH)
    smaller = torch.empty(2, 6, WIDTH)
    for row in range(3):
        for column in range(2):
            smaller[:, 2 * row + column] = between(features.view(2, 4, 4, WIDTH), row, column)
    torch.testing.assert_close(ours(features), nn.Sequential(*ours)(smaller), atol=1e-5, rtol=1e-5)


def between(grid: Tensor, row: int, column: int) -> Tensor:
    """The weighted mean of the four neighbours of a place in a map of 4 x 4 that is made 3 x 2."""
    y, x = (row + 0.5) * 4 / 3 - 0.5, (column + 0.5) * 4 / 2 - 0.5
    top, left = int(y), int(x)
    found = torch.zeros_like(grid[:, 0, 0])
    for down in (0, 1):
        for across in (0, 1):
            weight = (y - top if down else 1 - y + top) * (x - left if across else 1 - x + left)
            found += weight * grid[:, min(top + down, 3), min(left + across, 3)]
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_positions_and_parameters_are_known_without_building(kind: str, single_process: None) -> None:
    connector, module = connector_named(kind), built(kind)
    features = torch.randn(2, 64, WIDTH, requires_grad=True)
    found = module(features)
    assert found.shape == (2, connector.tokens_out(64), HIDDEN)
    found.sum().backward()
    assert features.grad is not None and all(weight.grad is not None for weight in module.parameters())
    told = connector.parameter_shapes(WIDTH, HIDDEN)
    assert list(told.items()) == [(name, tuple(weight.shape)) for name, weight in module.named_parameters()]
    assert connector.saved_width(WIDTH, HIDDEN, True) >= connector.saved_width(WIDTH, HIDDEN, False) >= 0
    vision, language = shapes("clip", 2, False)
    spec = ModelSpec(vision, language, kind, 128, frozenset({PROJECTOR}))
    counted = sum(weight.numel for weight in stage_weights(spec, Split(1, 1, 0)) if weight.part == PROJECTOR)
    model = meta_model(vision, language, kind)
    assert counted == sum(weight.numel() for weight in model.projector.parameters())
    for naming in (LLAVA_HF, LLAVA_ORIGINAL):
        with pytest.raises(CheckpointError, match=f"projector of type {kind}|projectors of type"):
            projector_table(kind, WIDTH, HIDDEN, naming)


@pytest.mark.parametrize("kind", KINDS[::3])
def test_a_model_takes_as_many_positions_as_are_counted(kind: str, single_process: None) -> None:
    vision, language = shapes("siglip", 2, False)
    rules = media_rules(vision, kind, DynamicTiles(1, 4, True))
    layout = rules.image(60, 28)
    assert layout.tiles == 3 and layout.tokens == 3 * rules.tile_tokens
    model = build_model(vision, language, kind)
    ids = torch.tensor([[1, *[IMAGE_TOKEN_ID] * layout.tokens, 5, 6]])
    logits = model(ids, torch.randn(3, 3, 28, 28))
    assert logits.shape[:2] == ids.shape and logits.isfinite().all()


@pytest.mark.parametrize(
    ("kind", "patches", "message"),
    [
        ("pixel_shuffle2_linear", 49, "found 7 x 7 features of an image, expected sides that 2 divides"),
        (
            "pixel_shuffle2_linear",
            65,
            "found 65 features of an image, expected a square of them, no class token",
        ),
        ("concat8_linear", 63, "found 63 features of an image, expected a multiple of 8"),
        ("perceiver_n5_d1_h6x4_g4", 64, "6 heads cannot be divided by 4 groups"),
        ("cabstractor_n5_d1_w8", 64, "5 positions are no square"),
        ("cabstractor_n4_d1_w8", 65, "found 65 features of an image, expected a square"),
    ],
)
def test_features_that_do_not_fit_are_refused_with_the_key(kind: str, patches: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        connector_named(kind).tokens_out(patches)


def test_pictures_of_their_own_shape_go_with_a_perceiver_and_with_no_map() -> None:
    vision = shapes("clip", 2, False)[0]
    rules = media_rules(vision, "perceiver_n3_d1_h4x8_separate", KeptShape())
    assert {rules.image(*size).tokens for size in ((28, 28), (100, 20), (9, 500))} == {3}
    with_token = replace(vision, class_token_length=0, kept_tokens=1)
    for kind in (
        "pixel_shuffle2_linear",
        "concat4_linear",
        "bilinear2x2_linear",
        "mlp_downsample",
        KINDS[-1],
    ):
        with pytest.raises(ConfigError, match="keep shows pictures that are no squares"):
            media_rules(vision, kind, KeptShape())
        with pytest.raises(ConfigError, match="1 leading tokens have no place|17 features|65 features"):
            media_rules(with_token, kind)
    assert not Connector.needs_square
