"""Bytes that towers and projector keep for the backward pass, and those that they need for a moment."""

from __future__ import annotations

from neva.families.configs import VisionConfig
from neva.families.connector import connector_named
from neva.families.media_tokens import tokens_per_image
from neva.families.tower_adapters import tower_sites
from neva.families.vision_sizes import num_layers_run
from neva.planner.micro_batch import FLOAT_BYTES, MicroBatchSpec
from neva.planner.tensors import PROJECTOR, ModelSpec, Split


def projector_bytes(model: ModelSpec, split: Split, work: MicroBatchSpec) -> int:
    """Counts what the projector saves, where it or a tower trains."""
    is_trained = PROJECTOR in model.trained_parts
    if not is_trained and not any(_keeps(model, part, vision) for part, vision in model.towers):
        return 0
    patches = _images(split, work) * model.vision.map_tokens
    sizes = (model.vision.feature_size, model.language.hidden_size)
    return patches * connector_named(model.adapter_type).saved_width(*sizes, is_trained) * work.width


def tower_bytes(model: ModelSpec, split: Split, work: MicroBatchSpec) -> int:
    """Counts what towers save that train, or that have adapters."""
    views = _images(split, work) * _views(model)
    return sum(
        _bytes_of_tower(vision, views, work.width) + _bytes_of_factors(vision, views, work.width)
        for part, vision in model.towers
        if _keeps(model, part, vision)
    )


def _keeps(model: ModelSpec, part: str, vision: VisionConfig) -> bool:
    """Whether a tower's forward pass is kept for a backward pass."""
    return part in model.trained_parts or vision.lora is not None


def _bytes_of_factors(vision: VisionConfig, views: int, width: int) -> int:
    """Counts what adapters save between their factors, and before lengths that are learnt."""
    if vision.lora is None:
        return 0
    sites = tower_sites(vision).values()
    widths = sum(vision.lora.rank + shape[0] * vision.lora.has_magnitudes for shape in sites)
    return views * _tower_tokens(vision) * widths * width


def _bytes_of_tower(vision: VisionConfig, views: int, width: int) -> int:
    tokens = views * _tower_tokens(vision)
    # Norms: 2 inputs, 2 outputs; queries, keys, values; attention's output.
    widths = 8 * vision.hidden_size
    # Input and output of the activation, and QuickGELU's sigmoid.
    widths += (3 if vision.hidden_act == "quick_gelu" else 2) * vision.ffn_hidden_size
    sums = vision.num_heads * FLOAT_BYTES
    pixels = 3 * vision.side**2 * views * width
    return tokens * num_layers_run(vision) * (widths * width + sums) + pixels


def towers_moment(model: ModelSpec, split: Split, work: MicroBatchSpec) -> int:
    """Estimates what towers that only run forward need, one after the other, with what the projector makes of them."""
    frozen = [vision for part, vision in model.towers if not _keeps(model, part, vision)]
    if not frozen:
        return 0
    images = _images(split, work)
    widest = max(
        _tower_tokens(vision) * (3 * vision.hidden_size + 2 * vision.ffn_hidden_size) for vision in frozen
    )
    positions = images * tokens_per_image(model.vision, model.adapter_type)
    return (images * _views(model) * widest + positions * 2 * model.language.hidden_size) * work.width


def _images(split: Split, work: MicroBatchSpec) -> int:
    """Images that a rank encodes: tensor- and context-parallel ranks share them out."""
    return -(-work.images // (split.tensor * work.context))


def _views(model: ModelSpec) -> int:
    """Pictures that the tower sees of an image: itself, or its quarters and perhaps the whole of them."""
    return 4 + connector_named(model.adapter_type).has_thumbnail if model.vision.image_tiles else 1


def _tower_tokens(vision: VisionConfig) -> int:
    return vision.num_tokens + vision.class_token_length
