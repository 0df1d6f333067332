"""A tiny Idefics2 of transformers, with its tokenizer and processor, and an image of every odd shape."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tokenizers import Tokenizer
from transformers import Idefics2Config, Idefics2ForConditionalGeneration, Idefics2Processor
from transformers.models.idefics2.image_processing_pil_idefics2 import Idefics2ImageProcessorPil

from neva.data.tokenizer import from_folder
from tests.convert.llava import write_tokenizer
from tests.convert.tiny import SIZES, scramble

FAKE, IMAGE, END = TOKENS = ("<fake_token_around_image>", "<image>", "<end_of_utterance>")
VOCABULARY = 136
LATENTS = 5
EDGES = {"shortest_edge": 21, "longest_edge": 64}
VISION = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 63,
    "patch_size": 7,
}
PERCEIVER = {
    "hidden_size": SIZES["hidden_size"],
    "rms_norm_eps": 1e-6,
    "resampler_n_latents": LATENTS,
    "resampler_depth": 2,
    "resampler_n_heads": 4,
    "resampler_head_dim": 8,
    "num_key_value_heads": 2,
}
CHAT = (
    "{% for message in messages %}{{message['role'].capitalize()}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
"""The hub's."""


def build(text: dict[str, Any] | None = None, seed: int = 0) -> Any:
    """Returns a random model whose language model is a Mistral, or what `text` says."""
    sizes = {**SIZES, "vocab_size": VOCABULARY, "model_type": "mistral", "sliding_window": None}
    config = Idefics2Config(
        text_config={**sizes, **(text or {})},
        vision_config=dict(VISION),
        perceiver_config=dict(PERCEIVER),
        image_token_id=134,
        pad_token_id=0,
    )
    return scramble(Idefics2ForConditionalGeneration._from_config(config, attn_implementation="sdpa"), seed)


def write_idefics2_tokenizer(folder: Path) -> Path:
    """Writes the character tokenizer with Idefics2's three tokens behind its vocabulary."""
    write_tokenizer(folder, VOCABULARY - len(TOKENS))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(list(TOKENS))
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def processor(folder: Path, splits: bool = False) -> Any:
    """Returns transformers' processor with the tokenizer of `folder`."""
    images = Idefics2ImageProcessorPil(do_image_splitting=splits, size=dict(EDGES))
    return Idefics2Processor(images, from_folder(folder), image_seq_len=LATENTS, chat_template=CHAT)


def save(folder: Path, text: dict[str, Any] | None = None, splits: bool = False) -> Any:
    """Writes a folder as the hub's is, and returns its model."""
    model = build(text)
    model.save_pretrained(folder)
    write_idefics2_tokenizer(folder)
    processor(folder, splits).save_pretrained(folder)
    return model


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed + width).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


PICTURES = [picture(*size) for size in ((64, 64), (150, 40), (30, 90), (10, 11), (77, 63), (201, 5))]
