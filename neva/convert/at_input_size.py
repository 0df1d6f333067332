"""A model whose tower is shown another size than it was trained with, as one that was trained with that size.

Neither layout of Hugging Face folders can say that positions are interpolated, but they hold interpolated ones.
"""

from __future__ import annotations

from dataclasses import replace

from neva.convert.lazy_model import LazyModel
from neva.families.built_tower import interpolated
from neva.families.naming import TOWER
from neva.families.vision import vision_family
from neva.weights.lazy import Chained


def at_input_size(model: LazyModel) -> LazyModel:
    """Returns the model with the positions that its tower adds to a square image, or itself where they are its own."""
    vision = model.vision
    if vision.side == vision.image_size:
        return replace(model, vision=replace(vision, input_size=None))
    family, weights = vision_family(vision.model_type), model.weights
    if family.positions is not None:
        name = TOWER + family.positions
        weights = Chained({name: interpolated(family, weights[name], vision)}, weights)
    seen = replace(vision, image_size=vision.side, input_size=None)
    return replace(model, vision=seen, weights=weights, tower_reference=None)
