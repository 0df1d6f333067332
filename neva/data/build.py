"""Encoder and dataset of a resolved `model` section, and what has to fit between template, tokenizer and model."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig
from transformers import PreTrainedTokenizerFast

from neva.config.data_sources import data_sources, paths_of
from neva.config.media import video_choice
from neva.config.samples import image_tags_of, own_template_of, system_prompt_of
from neva.constants import IMAGE_PLACEHOLDER
from neva.data.chat_template import chat_template
from neva.data.control_tokens import special_tokens, written_control_token
from neva.data.dataset import ConversationDataset
from neva.data.encode import ConversationEncoder
from neva.data.held_out import training_records
from neva.data.media.files import MediaFiles
from neva.data.media.processor import build_image_processor
from neva.data.media.reader import build_media_reader
from neva.data.media.video import require_library
from neva.data.sources.media_folder import MediaFolder
from neva.data.sources.mixture import open_media_folder, open_video_folder
from neva.data.sources.source import Records
from neva.errors import ConfigError
from neva.families.configs import VisionConfig
from neva.formats.cached_arrays import cache_folder
from neva.templates.choice import CHAT, chat_text, written_template
from neva.templates.template import Template, Turn, render


def build_encoder(model_cfg: DictConfig, tokenizer: PreTrainedTokenizerFast) -> ConversationEncoder:
    """Builds the encoder of a resolved `model` section, for training and inference alike.

    Raises:
        ConfigError: no such template, a system prompt that it does not take, or the tokenizer has ids beyond the
            model's vocabulary.
        DataError: template and tokenizer do not fit.
    """
    template = template_of(model_cfg, tokenizer)
    if len(tokenizer) > model_cfg.vocab_size:
        raise ConfigError(
            f"the tokenizer has {len(tokenizer)} ids, model.vocab_size is {model_cfg.vocab_size}; use the language "
            "model's own tokenizer or raise model.vocab_size"
        )
    encoder = ConversationEncoder(
        tokenizer=tokenizer,
        template=template,
        max_length=model_cfg.encoder_seq_length,
        sep_image_conv_front=model_cfg.data.sep_image_conv_front,
        system=system_prompt_of(model_cfg),
        image_tags=image_tags_of(model_cfg),
    )
    _check_system(encoder, model_cfg.data.conv_template)
    _check_tokens(encoder)
    _check_tags(encoder)
    _check_prompts(encoder)
    return encoder


def template_of(model_cfg: DictConfig, tokenizer: PreTrainedTokenizerFast) -> Template:
    """Returns the template of a resolved `model` section; ConfigError when there is no such one."""
    name, own = model_cfg.data.conv_template, own_template_of(model_cfg)
    if name == CHAT:
        return chat_template(chat_text(own), tokenizer)
    return written_template(name, own)


def _check_system(encoder: ConversationEncoder, name: str) -> None:
    """Raises ConfigError when the template has no place for the configured system prompt, or an image is in it."""
    if encoder.system and not encoder.template.system:
        raise ConfigError(
            f"model.data.system is {encoder.system!r:.80}, but the template {name} has no system prompt; leave it null "
            "or choose another model.data.conv_template"
        )
    if IMAGE_PLACEHOLDER in (encoder.system or ""):
        raise ConfigError(
            f"model.data.system is {encoder.system!r:.80}; take {IMAGE_PLACEHOLDER} out, images belong into the turns"
        )


def _check_tokens(encoder: ConversationEncoder) -> None:
    """Raises ConfigError when a control token stands in the template as text, which is read as its characters."""
    turns = [Turn("human", IMAGE_PLACEHOLDER), Turn("gpt", "")]
    segments = render(encoder.template, turns, encoder.system, encoder.tokenizer.eos_token)
    if written := written_control_token(segments, encoder.tokenizer, encoder.control_tokens):
        raise ConfigError(
            f"the conversation template or model.data.system writes {written!r}, a special token of the tokenizer, as "
            "text: name it in model.data.template.special_tokens, or take it out"
        )


def _check_tags(encoder: ConversationEncoder) -> None:
    """Raises ConfigError when the tokenizer lacks the tokens around an image."""
    tags = encoder.image_tags or ()
    known_tokens, _ = special_tokens(encoder.tokenizer, tags)
    if missing := [tag for tag in tags if tag not in known_tokens]:
        raise ConfigError(
            f"model.mm_cfg.use_im_start_end puts {' and '.join(missing)} around an image, which the tokenizer has not: "
            "add them to it, or name with model.mm_cfg.llm.model_type the models whose tokens it has"
        )


def _check_prompts(encoder: ConversationEncoder) -> None:
    """Raises ConfigError when the tokenizer merges the end of a prompt with the beginning of the answer.

    Inference would then start from ids that training never showed.
    """
    encoder = replace(encoder, max_length=sys.maxsize)
    prompt = encoder.prompt(IMAGE_PLACEHOLDER, [1])
    for answer in ("Yes", "a dog", "1", "漢"):
        ids, _ = encoder.sample([Turn("human", IMAGE_PLACEHOLDER), Turn("gpt", answer)], [1])
        if ids[: len(prompt)] != prompt:
            raise ConfigError(
                f"the tokenizer reads the end of a prompt otherwise when the answer {answer!r} follows it: "
                f"{encoder.tokenizer.convert_ids_to_tokens([token for token in ids[-8:] if token >= 0])}; choose a "
                "tokenizer that splits text at spaces, or a template with other text before the answer"
            )


def build_dataset(
    model_cfg: DictConfig,
    vision: VisionConfig,
    tokenizer: PreTrainedTokenizerFast,
    records: Records | None = None,
    image_folder: str | None = None,
) -> ConversationDataset:
    """Builds the dataset of a resolved `model` section: of the records that train, or of others with their images.

    Raises:
        DataError: a file or folder that it names is missing or cannot be read.
        ConfigError: the library that reads videos is missing.
    """
    data = model_cfg.data
    if (video := video_choice(data)) is not None:
        require_library(video.library)
    if image_folder is None:
        folder = open_media_folder(data)
    else:
        folder = MediaFolder(image_folder, data.max_media_mb << 20, "model.data.validation_image_folder")
    return ConversationDataset(
        records=training_records(data) if records is None else records,
        files=MediaFiles(folder, _fetched_folder(data)),
        video_folder=folder if data.video_folder is None else open_video_folder(data),
        encoder=replace(
            build_encoder(model_cfg, tokenizer),
            truncation=data.truncation,
            no_label=data.no_label,
            answer_loss_only=data.answer_loss_only,
        ),
        media=build_media_reader(model_cfg, vision, build_image_processor(model_cfg.mm_cfg.vision_encoder)),
        on_error=data.on_error,
        max_skipped=data.max_skipped,
        max_media=data.max_image_num,
        odd_records=data.odd_records,
    )


def _fetched_folder(data: DictConfig) -> Path | None:
    """Returns where images from addresses are kept; None: none are fetched."""
    if not data.image_urls:
        return None
    folder = cache_folder(paths_of(data_sources(data)[0].path)[0]) / "images"
    folder.mkdir(exist_ok=True)
    return folder
