"""Recipes of the report: LLaVA-1.5's shape with fewer layers, or sizes that a CPU manages; and a batch for them.

Dimensions: B micro batch, S sequence.
"""

from __future__ import annotations

from typing import Any

import torch
from omegaconf import DictConfig

from neva.config.load import load
from neva.config.show import as_override
from neva.config.tower import vision_config_of
from neva.constants import IGNORE_INDEX, IMAGE_TOKEN_ID
from neva.data.batch import Batch

TINY = {
    "model.encoder_seq_length": 64,
    "model.vocab_size": 256,
    "model.num_layers": 2,
    "model.hidden_size": 64,
    "model.ffn_hidden_size": 172,
    "model.num_attention_heads": 4,
    "model.mm_cfg.vision_encoder.image_size": 56,
    "model.mm_cfg.vision_encoder.hidden_size": 32,
    "model.mm_cfg.vision_encoder.num_layers": 3,
    "model.mm_cfg.vision_encoder.num_attention_heads": 2,
    "model.mm_cfg.vision_encoder.ffn_hidden_size": 64,
}
ALONE = {
    "trainer.devices": 1,
    "trainer.accelerator": "auto",
    "trainer.max_epochs": -1,
    "trainer.max_steps": 1000,
    "model.activations_checkpoint_granularity": None,
    "model.activations_checkpoint_method": None,
    "model.activations_checkpoint_num_layers": None,
    "model.optim.sched.warmup_steps": 0,
}
FULL = {
    "model.activations_checkpoint_granularity": "full",
    "model.activations_checkpoint_method": "uniform",
    "model.activations_checkpoint_num_layers": 1,
}


def recipe(name: str, tiny: bool, **keys: Any) -> DictConfig:
    """Returns a resolved recipe for one device; `keys` have `__` for the dots."""
    named = {key.replace("__", "."): value for key, value in keys.items()}
    values = {**ALONE, **named, **(TINY if tiny else {})}
    return load(name, [f"{key}={as_override(value)}" for key, value in values.items()])


def batches(cfg: DictConfig, label_share: float = 0.5) -> list[Batch]:
    """Returns a global batch: an image, then text to `encoder_seq_length`; the last positions carry the labels."""
    model = cfg.model
    tokens, side = vision_config_of(model).num_tokens, model.mm_cfg.vision_encoder.image_size
    draw = torch.Generator().manual_seed(0)
    found = []
    for _ in range(model.global_batch_size // model.micro_batch_size):
        shape = (model.micro_batch_size, model.encoder_seq_length)
        input_ids_BS = torch.randint(3, model.vocab_size, shape, generator=draw)
        input_ids_BS[:, :tokens] = IMAGE_TOKEN_ID
        num_labels = int(label_share * shape[1])
        labels_BS = torch.full(shape, IGNORE_INDEX)
        labels_BS[:, -num_labels - 1 : -1] = input_ids_BS[:, -num_labels:]
        pixels = torch.randn(shape[0], 3, side, side, generator=draw)
        found.append(Batch(input_ids_BS, labels_BS, pixels, [""] * shape[0], input_ids_BS.numel()))
    return found
