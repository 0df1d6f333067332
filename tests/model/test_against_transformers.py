"""Logits and loss of the whole model against transformers with copied weights, in float32."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SiglipVisionConfig,
)

from neva.constants import IGNORE_INDEX, IMAGE_TOKEN_ID
from neva.families.configs import LanguageConfig, VisionConfig
from neva.model.build import build_model
from neva.model.llava import NevaModel

# Two implementations of the same float32 arithmetic differ by the order of their sums.
TOLERANCE = 1e-5
VOCAB = 99


def shapes(tower: str, groups: int, tied: bool) -> tuple[VisionConfig, LanguageConfig]:
    """Odd sizes: nothing is equal to anything else by accident."""
    vision = VisionConfig(
        model_type=tower,
        image_size=28,
        patch_size=7,
        hidden_size=24,
        num_layers=4,
        num_heads=3,
        ffn_hidden_size=40,
        hidden_act="quick_gelu" if tower == "clip" else "gelu_pytorch_tanh",
        layer_norm_eps=1e-5 if tower == "clip" else 1e-6,
        select_layer=-2,
        class_token_length=1 if tower == "clip" else 0,
    )
    language = LanguageConfig(
        num_layers=3,
        hidden_size=48,
        ffn_hidden_size=80,
        num_heads=6,
        num_query_groups=groups,
        head_dim=8,
        vocab_size=VOCAB,
        padded_vocab_size=128,
        max_positions=128,
        rope_theta=5000.0,
        rope_scaling=None,
        rms_norm_eps=1e-5,
        tied=tied,
        qkv_bias=False,
        qk_norm=False,
        sliding_window=None,
    )
    return vision, language


def reference(vision: VisionConfig, language: LanguageConfig) -> LlavaForConditionalGeneration:
    tower_config = CLIPVisionConfig if vision.model_type == "clip" else SiglipVisionConfig
    config = LlavaConfig(
        vision_config=tower_config(
            image_size=vision.image_size,
            patch_size=vision.patch_size,
            hidden_size=vision.hidden_size,
            num_hidden_layers=vision.num_layers,
            num_attention_heads=vision.num_heads,
            intermediate_size=vision.ffn_hidden_size,
            hidden_act=vision.hidden_act,
            layer_norm_eps=vision.layer_norm_eps,
        ),
        text_config=LlamaConfig(
            vocab_size=language.padded_vocab_size,
            hidden_size=language.hidden_size,
            intermediate_size=language.ffn_hidden_size,
            num_hidden_layers=language.num_layers,
            num_attention_heads=language.num_heads,
            num_key_value_heads=language.num_query_groups,
            head_dim=language.head_dim,
            rms_norm_eps=language.rms_norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": language.rope_theta},
            tie_word_embeddings=language.tied,
        ),
        image_token_index=VOCAB,
        vision_feature_layer=vision.select_layer,
        vision_feature_select_strategy="default" if vision.class_token_length else "full",
        tie_word_embeddings=language.tied,
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():  # norms and biases away from ones and zeros, so that a lost one shows
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def copy_weights(model: NevaModel, source: LlavaForConditionalGeneration) -> None:
    """A second, slow way to map the weights: row by row, independent of the converter's tables."""
    state = source.state_dict()
    config = source.config.text_config
    heads, groups, size = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    target = {}
    for index in range(config.num_hidden_layers):
        hf, ours = f"model.language_model.layers.{index}", f"language_model.decoder.layers.{index}"
        rows = []
        for group in range(groups):
            for head in range(group * heads // groups, (group + 1) * heads // groups):
                rows.append(state[f"{hf}.self_attn.q_proj.weight"][head * size : (head + 1) * size])
            for name in ("k_proj", "v_proj"):
                rows.append(state[f"{hf}.self_attn.{name}.weight"][group * size : (group + 1) * size])
        target[f"{ours}.self_attention.linear_qkv.weight"] = torch.cat(rows)
        target[f"{ours}.self_attention.linear_proj.weight"] = state[f"{hf}.self_attn.o_proj.weight"]
        gate, up = state[f"{hf}.mlp.gate_proj.weight"], state[f"{hf}.mlp.up_proj.weight"]
        target[f"{ours}.mlp.linear_fc1.weight"] = torch.cat([gate, up])
        target[f"{ours}.mlp.linear_fc2.weight"] = state[f"{hf}.mlp.down_proj.weight"]
        target[f"{ours}.input_layernorm.weight"] = state[f"{hf}.input_layernorm.weight"]
        target[f"{ours}.pre_mlp_layernorm.weight"] = state[f"{hf}.post_attention_layernorm.weight"]
    target["language_model.decoder.final_layernorm.weight"] = state["model.language_model.norm.weight"]
    target["language_model.embedding.word_embeddings.weight"] = state[
        "model.language_model.embed_tokens.weight"
    ]
    if not config.tie_word_embeddings:
        target["language_model.output_layer.weight"] = state["lm_head.weight"]
    for number, name in ((0, "linear_1"), (2, "linear_2")):
        for kind in ("weight", "bias"):
            target[f"projector.{number}.{kind}"] = state[f"model.multi_modal_projector.{name}.{kind}"]
    prefix = "model.vision_tower."
    target |= {
        f"vision_tower.model.{k.removeprefix(prefix)}": v for k, v in state.items() if k.startswith(prefix)
    }
    missing, unexpected = model.load_state_dict(target, strict=False)
    assert not unexpected and all(name.endswith("_extra_state") for name in missing), (missing, unexpected)


def batch(num_image_tokens: int) -> dict[str, torch.Tensor]:
    """Two rows: image in the middle and labels behind it; image first, then padding."""
    generator = torch.Generator().manual_seed(1)
    image = torch.full((num_image_tokens,), IMAGE_TOKEN_ID)
    text = torch.randint(0, VOCAB, (2, 14), generator=generator)
    rows = [torch.cat([text[0, :4], image, text[0, 4:]]), torch.cat([image, text[1]])]
    input_ids = torch.stack(rows)
    labels = torch.full_like(input_ids, IGNORE_INDEX)
    labels[0, -9:-1] = input_ids[0, -8:]
    labels[1, -7:-3] = input_ids[1, -6:-2]
    pixel_values = torch.randn(2, 3, 28, 28, generator=generator)
    return {"input_ids": input_ids, "labels": labels, "pixel_values": pixel_values}


def reference_inputs(data: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    ids = data["input_ids"].masked_fill(data["input_ids"] == IMAGE_TOKEN_ID, VOCAB)
    return {"input_ids": ids, "pixel_values": data["pixel_values"], "attention_mask": torch.ones_like(ids)}


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("groups", [6, 2], ids=["mha", "gqa"])
@pytest.mark.parametrize("tower", ["clip", "siglip"])
def test_logits_loss_and_gradients_equal_transformers(
    single_process: None, tower: str, groups: int, tied: bool
) -> None:
    vision, language = shapes(tower, groups, tied)
    theirs = reference(vision, language)
    ours = build_model(vision, language, "mlp2x_gelu").eval()
    copy_weights(ours, theirs)
    data = batch(vision.num_tokens)

    logits = ours(data["input_ids"], data["pixel_values"])
    expected = theirs(**reference_inputs(data)).logits
    torch.testing.assert_close(logits, expected[..., :VOCAB], atol=TOLERANCE, rtol=TOLERANCE)

    loss = ours(data["input_ids"], data["pixel_values"], data["labels"]).mean()
    expected_loss = torch.nn.functional.cross_entropy(
        expected[..., :VOCAB].flatten(0, 1), data["labels"].flatten()
    )
    torch.testing.assert_close(loss, expected_loss, atol=TOLERANCE, rtol=TOLERANCE)

    loss.backward()
    expected_loss.backward()
    pairs = [
        (ours.projector[0].weight, theirs.model.multi_modal_projector.linear_1.weight),
        (
            ours.vision_tower.model.embeddings.patch_embedding.weight,
            theirs.model.vision_tower.embeddings.patch_embedding.weight,
        ),
        (
            ours.language_model.embedding.word_embeddings.weight,
            theirs.model.language_model.embed_tokens.weight,
        ),
    ]
    for parameter, expected_parameter in pairs:
        torch.testing.assert_close(parameter.grad, expected_parameter.grad, atol=TOLERANCE, rtol=1e-4)
