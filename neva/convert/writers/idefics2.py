"""An Idefics2 as a Hugging Face folder: what transformers 4.45 to 5.x load as `Idefics2ForConditionalGeneration`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from neva.config.media import media_rules_of
from neva.config.samples import IMAGE_TAGS, image_tags_of, system_prompt_of
from neva.constants import IMAGE_PLACEHOLDER
from neva.convert.hf_layouts import IDEFICS, check_logits
from neva.convert.lazy_model import LazyModel
from neva.convert.options import Options
from neva.convert.writers.exported_template import special_end
from neva.convert.writers.hf_config import dtype_name, text_config
from neva.convert.writers.proven_folder import proven_folder
from neva.errors import CheckpointError, DataError
from neva.families.connector import connector_named, projector_table
from neva.families.language import language_table
from neva.families.mapping import Table
from neva.families.own_shapes import NativeShape
from neva.families.vision import vision_family
from neva.families.vision_reading import IDEFICS2_TOWER
from neva.families.vision_table import tower_table
from neva.formats.hf_files import GENERATION_CONFIG, IMAGE_PROCESSOR_CONFIG, MODEL_CONFIG, PROCESSOR_CONFIG
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
from neva.model.perceiver import EPSILON
from neva.templates.idefics2 import END, chat_template
from neva.weights.lazy import checked

PROCESSOR = f"{IDEFICS.processor}Processor"


@dataclass(frozen=True)
class Vocabulary:
    """The vocabulary of an export: `<image>` has a row in it, which repeats row 0 where training had none."""

    image_id: int
    rows: int
    ids: Mapping[str, int | None]
    """`bos_token_id`, `eos_token_id` and `pad_token_id`."""


def write(model: LazyModel, target: Path, options: Options) -> None:
    """Writes the folder and proves it."""
    check_logits(model.language, model.name)

    def prove(folder: Path) -> None:
        from neva.convert.parity.idefics2 import prove_idefics2

        prove_idefics2(model.rounded(options.dtype), folder)

    with proven_folder(target, options, prove) as folder:
        write_idefics2(model, folder, options.dtype)


def write_idefics2(model: LazyModel, folder: Path, dtype: torch.dtype | None) -> None:
    """Writes weights, configurations, processor, tokenizer and chat template into the empty `folder`.

    `dtype` None keeps the weights' own.

    Raises:
        CheckpointError: the model has what an Idefics2 has not.
    """
    tiling = _native_shape(model)
    vocabulary = _write_tokenizer(model, folder)
    write_json(folder / MODEL_CONFIG, _config(model, vocabulary, dtype or model.dtype))
    write_json(folder / IMAGE_PROCESSOR_CONFIG, _image_processor(model, tiling))
    positions = media_rules_of(model.config, model.vision).tile_tokens
    write_json(folder / PROCESSOR_CONFIG, {"processor_class": PROCESSOR, "image_seq_len": positions})
    ends = [vocabulary.ids["eos_token_id"], *_end_of_answer(model, folder)]
    write_json(folder / GENERATION_CONFIG, {**_given(vocabulary.ids), "eos_token_id": ends})
    table = idefics2_table(model, vocabulary.rows)
    pairs = (
        (IDEFICS.naming.file_name(name), tensor) for name, tensor in table.to_hf(model.rounded(dtype).weights)
    )
    write_weights(folder, checked(pairs, len(table.hf_names), model.name))


def idefics2_table(model: LazyModel, rows: int) -> Table:
    """Returns the table of all three parts."""
    naming = IDEFICS.naming
    return (
        language_table(model.language, naming, rows)
        + projector_table(model.connector, model.vision.feature_size, model.language.hidden_size, naming)
        + tower_table(model.tower_shapes, naming.tower)
    )


def _native_shape(model: LazyModel) -> NativeShape:
    """Returns how the model's images are shown.

    Raises:
        CheckpointError: the model is no Idefics2.
    """
    vision, data = model.vision, model.config.data
    problems = {
        f"a {vision.model_type!r} tower": vision.model_type != IDEFICS2_TOWER,
        f"vision_select_layer={vision.select_layer}": vision.select_layer not in (-1, vision.num_layers),
        "post_layernorm=false": not vision.post_layernorm,
        f"conv_template={data.conv_template}": data.conv_template != "idefics2",
        "no <fake_token_around_image> around images": image_tags_of(model.config) != IMAGE_TAGS["idefics2"],
    }
    if found := [problem for problem, is_there in problems.items() if is_there]:
        raise CheckpointError(
            f"{model.name} has image_aspect_ratio=native with {', '.join(found)}; only an Idefics2 can be exported so: "
            "a tower of type idefics2_vision, its last layer behind the norm, conv_template=idefics2, "
            "model.mm_cfg.use_im_start_end=true and model.mm_cfg.llm.model_type=idefics2"
        )
    tiling = media_rules_of(model.config, vision).tiling
    assert isinstance(tiling, NativeShape)
    return tiling


def _config(model: LazyModel, vocabulary: Vocabulary, dtype: torch.dtype) -> dict[str, Any]:
    language = model.language.with_vocabulary(vocabulary.rows)
    sizes = getattr(connector_named(model.connector), "sizes", {})
    width, ids = model.language.hidden_size, vocabulary.ids
    return {
        "architectures": [IDEFICS.model_class],
        "model_type": IDEFICS.naming.model_type,
        "image_token_id": vocabulary.image_id,
        "tie_word_embeddings": model.language.tied,
        "use_cache": True,
        "torch_dtype": dtype_name(dtype),
        **_given(ids),
        "text_config": text_config(language, dtype, ids),
        "vision_config": {
            "model_type": IDEFICS2_TOWER,
            "num_channels": 3,
            **vision_family(model.vision.model_type).sizes(model.vision),
        },
        "perceiver_config": {
            "model_type": "idefics2_perceiver",
            "hidden_act": "silu",
            "hidden_size": width,
            "rms_norm_eps": EPSILON,
            "resampler_n_latents": sizes["latents"],
            "resampler_depth": sizes["depth"],
            "resampler_n_heads": sizes["heads"],
            "resampler_head_dim": sizes["head_dim"],
            "num_key_value_heads": sizes["groups"],
        },
    }


def _given(ids: Mapping[str, int | None]) -> dict[str, int]:
    return {name: value for name, value in ids.items() if value is not None}


def _image_processor(model: LazyModel, tiling: NativeShape) -> dict[str, Any]:
    if model.image_processor is None:
        raise CheckpointError(f"{model.name} has no image processor; expected a preprocessor_config.json")
    kept = ("resample", "image_mean", "image_std", "rescale_factor")
    return {
        **{key: model.image_processor[key] for key in kept if key in model.image_processor},
        **dict.fromkeys(("do_resize", "do_rescale", "do_normalize", "do_pad", "do_convert_rgb"), True),
        "do_image_splitting": tiling.splits,
        "size": {"shortest_edge": tiling.shortest_edge, "longest_edge": tiling.longest_edge},
        "image_processor_type": f"{IDEFICS.processor}ImageProcessor",
        "processor_class": PROCESSOR,
    }


def _end_of_answer(model: LazyModel, folder: Path) -> list[int]:
    end = special_end(model.config, folder)
    loaded = Tokenizer.from_file(str(folder / "tokenizer.json")).token_to_id(end or "")
    return [] if loaded is None else [loaded]


def _write_tokenizer(model: LazyModel, folder: Path) -> Vocabulary:
    with model.tokenizer_dir() as source:
        check_vocabulary(source, model.language.vocab_size)
        file = source / "tokenizer.json"
        if not file.is_file():
            raise DataError(f"{model.name} has no tokenizer.json, which an Idefics2 folder needs")
        content, roles = read_json(file, DataError), read_roles(source)
    if "eos_token" not in roles:
        raise DataError(f"{model.name}: its tokenizer names no eos_token; put it into tokenizer_config.json")
    roles.setdefault("pad_token", roles.get("unk_token", roles["eos_token"]))  # batches need one
    set_bos(content, roles.get("bos_token"), wanted=True)
    fake, _ = IMAGE_TAGS["idefics2"]
    _, image_id, _ = add_special_tokens(content, [fake, IMAGE_PLACEHOLDER, END])
    chat = chat_template(system_prompt_of(model.config))
    write_fast_tokenizer(folder, content, roles, chat, model.language.max_positions, PROCESSOR)
    loaded = Tokenizer.from_file(str(folder / "tokenizer.json"))
    rows = max(model.language.vocab_size, image_id + 1)
    return Vocabulary(image_id, rows, token_ids(loaded, roles))
