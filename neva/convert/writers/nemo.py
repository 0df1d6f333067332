"""`.nemo` files that hold every part of a model, or a language model alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from neva.constants import ADAPTERS, LANGUAGE_MODEL, PROJECTOR, SECOND_TOWER, VISION_TOWER
from neva.convert.lazy_model import LazyLanguageModel, LazyModel
from neva.convert.options import Options
from neva.families.naming import PROJECTOR as PROJECTOR_PREFIX
from neva.formats.nemo import write_nemo
from neva.weights.lazy import Cast, Chained, Filtered, checked


def write(model: LazyLanguageModel, target: Path, options: Options) -> None:
    """Writes the model; a tower that is a folder's own is recorded as frozen."""
    model = model.rounded(options.dtype)
    if options.add_tokens:
        from neva.convert.added_tokens import with_tokens

        model = with_tokens(model, options.add_tokens)
    if isinstance(model, LazyModel) and model.adapters is not None:
        _write_adapters(model, target, options)
        return
    parts, image_processor = {LANGUAGE_MODEL: "converted"}, None
    if isinstance(model, LazyModel):
        parts |= {PROJECTOR: "converted", VISION_TOWER: "frozen" if model.tower_reference else "converted"}
        parts |= dict.fromkeys([SECOND_TOWER] * (model.vision.second is not None), "converted")
        image_processor = model.image_processor
    pairs = ((name, model.weights[name]) for name in model.weights)
    with model.tokenizer_dir() as tokenizer_dir:
        write_nemo(
            target,
            model.config,
            checked(pairs, len(model.weights), str(target)),
            tokenizer_dir,
            image_processor,
            model.name,
            parts,
            options.overwrite,
        )


def _write_adapters(model: LazyModel, target: Path, options: Options) -> None:
    """Writes adapters and projector, which refer to the model that they belong to."""
    assert model.adapters is not None
    own: Mapping[str, Tensor] = Chained(model.adapters, Filtered(model.weights, PROJECTOR_PREFIX))
    weights = own if options.dtype is None else Cast(own, options.dtype)
    with model.tokenizer_dir() as tokenizer_dir:
        write_nemo(
            target,
            model.config,
            checked(((name, weights[name]) for name in weights), len(weights), str(target)),
            tokenizer_dir,
            model.image_processor,
            model.name,
            {ADAPTERS: "converted", PROJECTOR: "converted"},
            options.overwrite,
            base=None if model.base is None else model.base.parts,
        )
