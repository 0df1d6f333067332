"""Floating-point operations of a training step that the model asks for; what is computed twice counts once.

A matrix product of [n, k] and [k, m] is 2nkm. Causal attention is half of the full square. A backward pass is two
forward passes, or one where weights are frozen and only the gradient of the input goes on (the PaLM paper's count,
https://arxiv.org/abs/2204.02311, appendix B, with logits at label positions only, as neva computes them).
"""

from __future__ import annotations

import math

from omegaconf import DictConfig

from neva.config.model_config import language_config_of, vision_config_of
from neva.config.parts import trained_parts
from neva.constants import LANGUAGE_MODEL
from neva.families.language import layer_shapes
from neva.families.vision import num_layers_run

PEAK_BF16 = {"H100": 989e12, "H200": 989e12}
"""Dense bf16 FLOP/s by a word of the GPU's name (NVIDIA's data sheets, SXM)."""


def step_flops(cfg: DictConfig, label_share: float) -> float:
    """Returns the model FLOPs of one global batch with an image a sample and a frozen tower."""
    model, samples = cfg.model, cfg.model.global_batch_size
    vision, language = vision_config_of(model), language_config_of(model)
    length, hidden = model.encoder_seq_length, language.hidden_size
    matrices = sum(math.prod(shape) for shape in layer_shapes(language).values() if len(shape) > 1)
    attention = 2 * 2 * (length / 2) * language.num_heads * language.head_dim
    of_layers = language.num_layers * length * (2 * matrices + attention)
    of_head = 2 * hidden * language.vocab_size * label_share * length
    passes = 3 if LANGUAGE_MODEL in trained_parts(model) else 2
    of_projector = 3 * 2 * vision.num_tokens * (vision.hidden_size * hidden + hidden * hidden)
    tokens, width = vision.num_tokens + vision.class_token_length, vision.hidden_size
    of_tower_layer = tokens * (
        2 * (4 * width**2 + 2 * width * vision.ffn_hidden_size) + 2 * 2 * tokens * width
    )
    of_tower = num_layers_run(vision) * of_tower_layer
    return samples * (passes * (of_layers + of_head) + of_projector + of_tower)


def peak_flops(device_name: str) -> float | None:
    """Returns the dense bf16 peak of a GPU, None where it is not known."""
    return next((peak for word, peak in PEAK_BF16.items() if word in device_name), None)
