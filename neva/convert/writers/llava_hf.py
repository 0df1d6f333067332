"""A LLaVA model as a llava-hf folder: what transformers 4.45 to 5.x load as one of `neva.convert.hf_layouts`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from neva.config.media import turns_images
from neva.constants import IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER
from neva.convert.at_input_size import at_input_size
from neva.convert.hf_layouts import IDEFICS, NEXT, ONEVISION, check_logits, check_towers, layout_of, pinpoints
from neva.convert.lazy_model import LazyModel
from neva.convert.options import Options
from neva.convert.writers.exported_template import jinja, special_end
from neva.convert.writers.hf_config import check_aspect_ratio, dtype_name, text_config, vision_config
from neva.convert.writers.proven_folder import proven_folder
from neva.errors import CheckpointError, DataError
from neva.families.configs import padded_vocab_size
from neva.families.connector import projector_table
from neva.families.language import language_table
from neva.families.mapping import Table
from neva.families.media_tokens import tokens_per_image
from neva.families.vision_sizes import listed
from neva.families.vision_table import stored_tower, tower_table
from neva.formats.hf_files import (
    GENERATION_CONFIG,
    IMAGE_PROCESSOR_CONFIG,
    MODEL_CONFIG,
    PROCESSOR_CONFIG,
    VIDEO_PROCESSOR_CONFIG,
)
from neva.formats.hf_folder import write_weights
from neva.formats.hf_tokenizer import (
    add_special_tokens,
    read_roles,
    set_bos,
    token_ids,
    write_fast_tokenizer,
)
from neva.formats.json import read_json, write_json
from neva.formats.vocabulary import check_vocabulary
from neva.templates.jinja import with_videos
from neva.weights.lazy import checked

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageToken:
    """The `<image>` token of an export, and the `<video>` token of one that has it.

    `rows` is the vocabulary that holds them, `fill_row` what their rows repeat.
    """

    id: int
    video_id: int | None
    rows: int
    fill_row: int


def write(model: LazyModel, target: Path, options: Options) -> None:
    """Writes the folder and proves it; an Idefics2's is its own."""
    check_towers(model)
    if layout_of(model) is IDEFICS:
        from neva.convert.writers import idefics2

        if options.vocab_multiple != 1:
            raise CheckpointError(
                "--pad_vocab_to pads the vocabulary of a LLaVA, not of an Idefics2: leave it out"
            )
        idefics2.write(model, target, options)
        return
    model = at_input_size(model)
    check_logits(model.language, model.name)

    def prove(folder: Path) -> None:
        if layout_of(model) is ONEVISION:
            from neva.convert.parity.onevision import prove_onevision

            prove_onevision(model.rounded(options.dtype), folder)
            return
        from neva.convert.parity.llava import prove_llava

        prove_llava(model.rounded(options.dtype), folder)

    if not turns_images(model.config):
        logger.info(
            "the model was trained on pictures as their files hold them; loaders that turn them by their EXIF "
            "orientation, such as transformers' own, show it others (model.data.exif_transpose)"
        )
    if layout_of(model) is ONEVISION:
        logger.info(
            "transformers 4.57 and later show several images as training did; 4.45 cuts each of them into tiles, and "
            "its processor counts with anyres_max_9 whatever config.json says"
        )
    with proven_folder(target, options, prove) as folder:
        write_llava_hf(model, folder, options.dtype, options.vocab_multiple)


def write_llava_hf(
    model: LazyModel, folder: Path, dtype: torch.dtype | None, vocab_multiple: int = 1
) -> None:
    """Writes weights, configurations, processor, tokenizer and chat template into the empty `folder`.

    `dtype` None keeps the weights' own. The vocabulary, with the image token, is padded to a multiple of
    `vocab_multiple` rows.

    Raises:
        CheckpointError: the model has what a llava-hf folder cannot hold: another projector than mlp2x_gelu, a
            tower of which more than one leading token is dropped.
    """
    with model.tokenizer_dir() as tokenizer_dir:
        image, ids = _write_tokenizer(model, tokenizer_dir, folder, vocab_multiple)
    write_json(folder / MODEL_CONFIG, llava_config(model, image, ids, dtype or model.dtype))
    image_processor = preprocessor_config(model)
    write_json(folder / IMAGE_PROCESSOR_CONFIG, image_processor)
    if layout_of(model).has_videos:
        write_json(folder / VIDEO_PROCESSOR_CONFIG, _video_processor(image_processor))
    write_json(folder / PROCESSOR_CONFIG, _processor_config(model))
    write_json(folder / GENERATION_CONFIG, _generation_config(model, folder, ids))
    table = llava_table(model, image)
    pairs = table.to_hf(model.rounded(dtype).weights)
    write_weights(folder, checked(pairs, len(table.hf_names), model.name))


def llava_table(model: LazyModel, image: ImageToken) -> Table:
    """Returns the table of all three parts in the llava-hf layout."""
    width, naming = model.vision.feature_size, layout_of(model).naming
    return (
        language_table(model.language, naming, image.rows, image.fill_row)
        + projector_table(model.connector, width, model.language.hidden_size, naming)
        + tower_table(model.tower_shapes, stored_tower(model.vision, naming), model.tower_file_names)
    )


def llava_config(
    model: LazyModel, image: ImageToken, ids: Mapping[str, int | None], dtype: torch.dtype
) -> dict[str, Any]:
    """Returns the content of `config.json`."""
    language, layout = model.language.with_vocabulary(image.rows), layout_of(model)
    return {
        **_tiles(model, image),
        "architectures": [layout.model_class],
        "model_type": layout.naming.model_type,
        "ignore_index": -100,
        "image_token_index": image.id,
        "image_seq_length": tokens_per_image(model.vision, model.connector),
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": True,
        "vision_feature_layer": listed(model.vision.select_layer),
        "vision_feature_select_strategy": _select_strategy(model),
        "tie_word_embeddings": model.language.tied,
        "torch_dtype": dtype_name(dtype),
        "pad_token_id": ids["pad_token_id"],
        "text_config": text_config(language, dtype, ids),
        "vision_config": vision_config(model.vision, dtype, model.has_pooling_head),
    }


def _tiles(model: LazyModel, image: ImageToken) -> dict[str, Any]:
    """Returns what `config.json` says of tiles."""
    layout = layout_of(model)
    if not layout.has_tiles:
        return {}
    said: dict[str, Any] = {"image_grid_pinpoints": pinpoints(model)}
    if layout is NEXT:
        return {**said, "use_image_newline_parameter": True}
    aspect_ratio = model.config.data.image_aspect_ratio
    return {**said, "vision_aspect_ratio": aspect_ratio, "video_token_index": image.video_id}


def preprocessor_config(model: LazyModel) -> dict[str, Any]:
    """Returns the image processor that does what training did; padding to a square needs transformers 4.49 or later."""
    stored = model.image_processor
    if stored is None:
        raise CheckpointError(f"{model.name} has no image processor; expected a preprocessor_config.json")
    layout = layout_of(model)
    if not layout.has_tiles:
        check_aspect_ratio(model)
    settings = {**stored, "processor_class": f"{layout.processor}Processor"}
    settings.pop("image_processor_class", None)
    if layout.has_tiles:
        settings |= {
            "image_processor_type": f"{layout.processor}ImageProcessor",
            "image_grid_pinpoints": pinpoints(model),
            "do_pad": True,
        }
        square = {"height": model.vision.side, "width": model.vision.side}  # of a tile
        if layout is NEXT:
            settings["crop_size"] = square
            settings.setdefault("do_center_crop", False)
        else:  # it resizes tiles, and squares, to this and crops nothing
            settings = {key: value for key, value in settings.items() if not key.endswith("crop_size")}
            settings |= {"size": square, "do_center_crop": False, "do_resize": True}
        settings.setdefault("do_convert_rgb", True)
    elif model.config.data.image_aspect_ratio == "pad":
        settings |= {"image_processor_type": "LlavaImageProcessor", "do_pad": True}
        settings.setdefault("do_center_crop", False)
        settings.setdefault("do_convert_rgb", True)
    else:
        name = str(settings["image_processor_type"])
        settings["image_processor_type"] = name.removesuffix("Pil").removesuffix("Fast")
    return settings


def _video_processor(image_processor: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the processor of videos, which does with frames what the other does with a tile."""
    others = ("image_processor_type", "image_grid_pinpoints", "do_pad", "do_center_crop")
    kept = {key: value for key, value in image_processor.items() if key not in others}
    return {**kept, "video_processor_type": f"{ONEVISION.processor}VideoProcessor", "do_sample_frames": False}


def _processor_config(model: LazyModel) -> dict[str, Any]:
    layout = layout_of(model)
    common = {"processor_class": f"{layout.processor}Processor", "image_token": IMAGE_PLACEHOLDER}
    if layout is ONEVISION:  # "full": nothing is taken off this number
        return {
            **common,
            "video_token": VIDEO_PLACEHOLDER,
            "num_image_tokens": tokens_per_image(model.vision, model.connector),
            "vision_feature_select_strategy": "full",
            "vision_aspect_ratio": model.config.data.image_aspect_ratio,
        }
    # These two only count image tokens. One more and one less is none, whatever leading tokens are dropped;
    # transformers before 4.46 always adds the one and would be a token off with "full".
    return {
        **common,
        "patch_size": model.vision.patch_size,
        "num_additional_image_tokens": 1 + model.vision.kept_tokens,
        "vision_feature_select_strategy": "default",
    }


def _generation_config(model: LazyModel, folder: Path, ids: Mapping[str, int | None]) -> dict[str, Any]:
    """Returns token ids, with every token that ends an answer in the model's template."""
    config: dict[str, Any] = {name: value for name, value in ids.items() if value is not None}
    loaded = Tokenizer.from_file(str(folder / "tokenizer.json"))
    end = loaded.token_to_id(special_end(model.config, folder) or "")
    if end is not None and end != ids["eos_token_id"]:
        config["eos_token_id"] = [ids["eos_token_id"], end]
    return config


def _select_strategy(model: LazyModel) -> str:
    length = model.vision.class_token_length
    if length > 1:
        raise CheckpointError(
            f"class_token_length is {length}; a llava-hf folder can drop one leading token or none: train with "
            "model.mm_cfg.vision_encoder.class_token_length=1, which keeps the others among the patches"
        )
    if model.vision.post_layernorm:
        raise CheckpointError(
            f"{model.name} was trained with model.mm_cfg.vision_encoder.post_layernorm=true, which a llava-hf folder "
            "cannot say: there is no export"
        )
    return "default" if length == 1 else "full"


def _write_tokenizer(
    model: LazyModel, source: Path, folder: Path, vocab_multiple: int
) -> tuple[ImageToken, dict[str, int | None]]:
    check_vocabulary(source, model.language.vocab_size)
    file = source / "tokenizer.json"
    if not file.is_file():
        raise DataError(f"{source} has no tokenizer.json, which a llava-hf folder needs")
    content = read_json(file, DataError)
    roles = read_roles(source)
    if "eos_token" not in roles:
        raise DataError(f"{model.name}: its tokenizer names no eos_token; put it into tokenizer_config.json")
    roles.setdefault("pad_token", roles.get("unk_token", roles["eos_token"]))  # batches need one
    set_bos(content, roles.get("bos_token"), wanted=False)  # the chat template's
    layout = layout_of(model)
    tokens = [IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER] if layout.has_videos else [IMAGE_PLACEHOLDER]
    image_id, *video_ids = ids = add_special_tokens(content, tokens)
    template = jinja(model.config, roles)
    template = with_videos(template) if layout.has_videos else template
    processor = f"{layout.processor}Processor"
    write_fast_tokenizer(folder, content, roles, template, model.language.max_positions, processor)
    loaded = Tokenizer.from_file(str(folder / "tokenizer.json"))
    filler = next((roles[role] for role in ("unk_token", "bos_token") if role in roles), None)
    image = ImageToken(
        id=image_id,
        video_id=video_ids[0] if video_ids else None,
        rows=padded_vocab_size(max(model.language.vocab_size, max(ids) + 1), vocab_multiple, 1),
        fill_row=(loaded.token_to_id(filler) if filler else None) or 0,
    )
    return image, token_ids(loaded, roles)
