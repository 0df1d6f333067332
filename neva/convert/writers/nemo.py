"""`.nemo` files that hold every part of a model, or a language model alone."""

from __future__ import annotations

from pathlib import Path

from neva.constants import LANGUAGE_MODEL, PROJECTOR, SECOND_TOWER, VISION_TOWER
from neva.convert.lazy_model import LazyLanguageModel, LazyModel
from neva.convert.options import Options
from neva.formats.nemo import write_nemo
from neva.weights.lazy import checked


def write(model: LazyLanguageModel, target: Path, options: Options) -> None:
    """Writes the model; a tower that is a folder's own is recorded as frozen."""
    model = model.rounded(options.dtype)
    if options.add_tokens:
        from neva.convert.added_tokens import with_tokens

        model = with_tokens(model, options.add_tokens)
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
