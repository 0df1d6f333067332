"""Conversations with images as training samples."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import torch
from omegaconf import DictConfig
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast

from neva.config.model_config import system_prompt_of
from neva.constants import IGNORE_INDEX, IMAGE_PLACEHOLDER
from neva.data.encode import ConversationEncoder, Encoded
from neva.data.held_out import training_records
from neva.data.media.image import load_image, require_image_file
from neva.data.media.processor import AspectRatio, ImageProcessor, build_image_processor, to_pixels
from neva.data.sources.source import Record, Records
from neva.errors import ConfigError, DataError, OverlongError, SampleError
from neva.families.configs import VisionConfig
from neva.families.media_tokens import tokens_per_image
from neva.registry import TEMPLATES
from neva.templates.template import Turn, template_names

logger = logging.getLogger(__name__)

T = TypeVar("T")

NO_RECORD = "none"
"""What names a blank sample."""


class Sample(NamedTuple):
    """S tokens, N images of H x W pixels; `labels` are not shifted."""

    input_ids: torch.Tensor
    """int64 [S], `IMAGE_TOKEN_ID` where image patches go."""
    labels: torch.Tensor
    """int64 [S], `IGNORE_INDEX` where there is no loss."""
    pixel_values: torch.Tensor
    """float32 [N, 3, H, W] in the order of the placeholders; N is 0 for text alone."""
    record_id: str


class ConversationDataset(Dataset[Sample]):
    """Reads and encodes one record an index.

    With `on_error` skip, a record that raises `SampleError` is replaced by the next one that does not, in the order
    of the file; so is one that is too long, with `truncation` drop. That depends on the files alone, so every rank and
    every run decides alike. More than the share `max_skipped` of the records is no matter of single records any more,
    and an error.
    """

    def __init__(
        self,
        records: Records,
        image_folder: Path,
        encoder: ConversationEncoder,
        processor: ImageProcessor,
        image_size: int,
        aspect_ratio: AspectRatio,
        on_error: Literal["fail", "skip"],
        max_skipped: float,
        exif_transpose: bool,
    ) -> None:
        self.records = records
        self.image_folder = image_folder
        self.encoder = encoder
        self.processor = processor
        self.image_size = image_size
        self.aspect_ratio = aspect_ratio
        self.on_error = on_error
        self.max_skipped = max_skipped
        self.exif_transpose = exif_transpose
        # Which records were skipped so far; shared memory, so that the main process sees what its workers did.
        self.skipped = torch.zeros(len(records), dtype=torch.bool).share_memory_()
        # And which were cut to the length of a sequence.
        self.shortened = torch.zeros(len(records), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        """Returns the sample of a record or, with `on_error` skip, of the next good one.

        Raises:
            SampleError: naming the record.
            DataError: too many have been skipped.
        """
        for distance in range(len(self)):
            position = (index + distance) % len(self)
            try:
                return self.read(position)
            except SampleError as error:
                self.pass_over(position, error)
        raise SampleError(f"{self.records.path}: none of the {len(self)} records gives a sample")

    def pass_over(self, index: int, error: SampleError) -> None:
        """Counts a record that gives no sample; raises `error` where that is to end the run, DataError at too many."""
        if not self.passes_over(error):
            raise error
        if not self.skipped[index]:
            self.skipped[index] = True
            logger.warning("skipped: %s", error)
            self._refuse_too_many(error)

    def passes_over(self, error: SampleError) -> bool:
        """Returns whether the next good record is taken for one that raises this."""
        return self.on_error == "skip" or isinstance(error, OverlongError)

    def _refuse_too_many(self, last: SampleError) -> None:
        if self.is_too_many(self.skipped_count):
            raise DataError(
                f"{self.skipped_count} of {len(self)} records had to be skipped, more than "
                f"model.data.max_skipped={self.max_skipped}; the last: {last}. Look whether model.data.data_path and "
                "model.data.image_folder are the right ones, or raise model.data.max_skipped"
            ) from last

    def is_too_many(self, skipped: int) -> bool:
        """Returns whether that many skipped records are more than `max_skipped` allows."""
        return skipped > max(1, self.max_skipped * len(self))

    @property
    def skipped_count(self) -> int:
        """How many different records this process and its workers have skipped so far."""
        return int(self.skipped.sum())

    def read(self, index: int) -> Sample:
        """Returns the sample of this record and no other; SampleError, naming the record, when it gives none."""
        record, encoded, pixels = self._prepare(
            index,
            lambda path: to_pixels(load_image(path, self.exif_transpose), self.processor, self.aspect_ratio),
        )
        return Sample(
            torch.from_numpy(np.array(encoded.input_ids, dtype=np.int64)),
            torch.from_numpy(np.array(encoded.labels, dtype=np.int64)),
            torch.stack(pixels) if pixels else torch.empty(0, 3, self.image_size, self.image_size),
            record.id,
        )

    def check(self, index: int) -> Encoded:
        """Returns ids and labels; raises what `read` would, as far as that is seen without decoding an image."""
        return self._prepare(index, require_image_file)[1]

    def blank(self, pad_id: int) -> Sample:
        """Returns a sample of one token without image and label, for a place that no record is left for."""
        pixels = torch.empty(0, 3, self.image_size, self.image_size)
        return Sample(torch.tensor([pad_id]), torch.tensor([IGNORE_INDEX]), pixels, NO_RECORD)

    def _prepare(self, index: int, of_image: Callable[[Path], T]) -> tuple[Record, Encoded, list[T]]:
        record: Record | None = None
        try:
            record = self.records[index]
            encoded = self.encoder.fitted(record.turns, len(record.images), record.system)
            images = [of_image(self.image_folder / image) for image in record.images[: encoded.num_images]]
            if encoded.is_shortened:
                self.shortened[index] = True
            return record, encoded, images
        except SampleError as error:
            if record and record.images and not self.image_folder.is_dir():
                raise DataError(
                    f"model.data.image_folder: no folder at {self.image_folder} any more"
                ) from error
            record_id = record.id if record else error.record_id
            place = (record.place if record else error.place) or f"record {index}"
            name = place if record_id is None else f"{place} (id {record_id!r})"
            named = type(error)(f"{self.records.path}, {name}: {error}", error.kind)
            named.record_id, named.place = record_id, place
            raise named from error


def build_encoder(
    model_cfg: DictConfig, vision: VisionConfig, tokenizer: PreTrainedTokenizerFast
) -> ConversationEncoder:
    """Builds the encoder of a resolved `model` section, for training and inference alike.

    Raises:
        ConfigError: no such template, a system prompt that it does not take, or the tokenizer has ids beyond the
            model's vocabulary.
        DataError: template and tokenizer do not fit.
    """
    name = model_cfg.data.conv_template
    if name not in TEMPLATES:
        raise ConfigError(
            f"model.data.conv_template is {name!r}, expected one of {', '.join(template_names())}"
        )
    if len(tokenizer) > model_cfg.vocab_size:
        raise ConfigError(
            f"the tokenizer has {len(tokenizer)} ids, model.vocab_size is {model_cfg.vocab_size}; use the language "
            "model's own tokenizer or raise model.vocab_size"
        )
    encoder = ConversationEncoder(
        tokenizer=tokenizer,
        template=TEMPLATES[name],
        image_tokens=tokens_per_image(vision, model_cfg.mm_cfg.mm_mlp_adapter_type),
        max_length=model_cfg.encoder_seq_length,
        sep_image_conv_front=model_cfg.data.sep_image_conv_front,
        system=system_prompt_of(model_cfg),
    )
    _check_system(encoder, name)
    _check_prompts(encoder)
    return encoder


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


def _check_prompts(encoder: ConversationEncoder) -> None:
    """Raises ConfigError when the tokenizer merges the end of a prompt with the beginning of the answer.

    Inference would then start from ids that training never showed.
    """
    encoder = replace(encoder, max_length=sys.maxsize)
    prompt = encoder.prompt(IMAGE_PLACEHOLDER, 1)
    for answer in ("Yes", "a dog", "1", "漢"):
        ids, _ = encoder.sample([Turn("human", IMAGE_PLACEHOLDER), Turn("gpt", answer)], 1)
        if ids[: len(prompt)] != prompt:
            raise ConfigError(
                f"the tokenizer reads the end of a prompt otherwise when the answer {answer!r} follows it: "
                f"{encoder.tokenizer.convert_ids_to_tokens(ids[-8:])}; choose a tokenizer that splits text at spaces"
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
    """
    data = model_cfg.data
    folder = Path(data.image_folder if image_folder is None else image_folder)
    if not folder.is_dir():
        key = "image_folder" if image_folder is None else "validation_image_folder"
        raise DataError(f"model.data.{key}: no folder at {folder}")
    return ConversationDataset(
        records=training_records(data) if records is None else records,
        image_folder=folder,
        encoder=replace(build_encoder(model_cfg, vision, tokenizer), truncation=data.truncation),
        processor=build_image_processor(model_cfg.mm_cfg.vision_encoder),
        image_size=vision.image_size,
        aspect_ratio=data.image_aspect_ratio,
        on_error=data.on_error,
        max_skipped=data.max_skipped,
        exif_transpose=data.exif_transpose,
    )
