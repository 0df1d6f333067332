"""The few names that every room shares."""

from __future__ import annotations

IGNORE_INDEX = -100
"""Label of a position that carries no loss (the default `ignore_index` of `torch.nn.functional.cross_entropy`)."""

IMAGE_TOKEN_ID = -200
"""Id in `input_ids` of every position that an image patch will fill.

It is outside every vocabulary: no embedding row is spent on it and no text can forge it
(haotian-liu/LLaVA `constants.py` uses the same number for the whole image, here it stands once for each patch)."""

IMAGE_PLACEHOLDER = "<image>"
"""What marks the place of an image in the text of a conversation turn."""

VIDEO_PLACEHOLDER = "<video>"
"""The same for a video."""

VALIDATION_LOSS = "val_loss"
"""What a validation logs, under the name that Lightning's users know."""

LOGGED_VALUES = ("loss", "lr", "grad_norm", "label_tokens", "epoch", "consumed_samples")
"""What every training step logs, so that checkpoints can be ranked by it."""

WASTE_VALUES = ("pad_share", "image_share", "label_share", "loader_wait_s")
"""What it logs beside that of where its positions and its time went."""

LOAD_BALANCING, Z_LOSS = "load_balancing_loss", "z_loss"
"""The losses of the routers of experts, under the names that Megatron logs them by."""

SOMETIMES_LOGGED = ("loss_scale", "skipped", LOAD_BALANCING, Z_LOSS)
"""What it logs beside that with float16, where steps may be passed over, and with experts that are balanced."""

VISION_TOWER, PROJECTOR, LANGUAGE_MODEL = "vision_tower", "projector", "language_model"

SECOND_TOWER = "second_vision_tower"
"""Another tower that sees the same images; few models have one."""

PARTS = (VISION_TOWER, SECOND_TOWER, PROJECTOR, LANGUAGE_MODEL)
"""The parts of a model: attributes of `NevaModel`, and the first component of every parameter's name."""

ADAPTERS = "adapters"
"""The low-rank factors beside the matrices of the language model, which train without it: a part by name alone."""

ALL_PARTS = (*PARTS, ADAPTERS)
"""Everything that may train, be saved or come from somewhere by itself."""

ADAPTER = ".adapter."
"""Stands in the name of every tensor of the adapters, behind that of the matrix."""


def part_of(name: str) -> str:
    """Returns the part that a tensor of this native name belongs to."""
    return ADAPTERS if ADAPTER in name else name.split(".", 1)[0]


VOCABULARY = ("language_model.embedding.word_embeddings.weight", "language_model.output_layer.weight")
"""Native names of what has a row for each token, where Megatron runs the language model: layouts pad them."""
