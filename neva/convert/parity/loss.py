"""The loss of a folder's model on records of a data set: by transformers, and by the native model.

Both get the ids and labels that training would learn. transformers makes its own pixels of the images, by the
folder's image processor, and its own mean. The row of a vocabulary that holds a LLaVA's image token alone, which
training has not, is left out of its softmax.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from omegaconf import open_dict
from torch import Tensor
from transformers import AutoImageProcessor

from neva.constants import IGNORE_INDEX, IMAGE_TOKEN_ID
from neva.convert.convert import open_source
from neva.convert.hf_layouts import IDEFICS, layout_of
from neva.convert.lazy_model import LazyModel
from neva.convert.parity.native import loaded
from neva.convert.parity.samples import native_processor
from neva.data.build import build_dataset
from neva.data.collate import feature_order, picture_shapes
from neva.data.dataset import ConversationDataset, Sample
from neva.data.media.reader import build_media_reader
from neva.data.tokenizer import load_tokenizer
from neva.formats.hf_files import read_config


@dataclass(frozen=True)
class SampleLoss:
    """Mean loss over the label tokens of one record, by both."""

    record_id: str
    images: int
    label_tokens: int
    theirs: float
    ours: float

    @property
    def difference(self) -> float:
        """How far they are apart."""
        return abs(self.theirs - self.ours)


def sample_losses(
    folder: Path, data_path: Path, image_folder: Path | None, count: int, data: dict[str, Any]
) -> list[SampleLoss]:
    """Returns both losses of the first `count` records, in float32 on the CPU.

    Args:
        folder: a llava-hf folder or an Idefics2's.
        data_path, image_folder: the records, and where their images lie.
        count: of records.
        data: keys of `model.data` that are not as the folder says.

    Raises:
        UserError: the folder holds no such model, or a record cannot be read.
    """
    model = open_source(folder)
    dataset = _dataset(model, data_path, image_folder, data)
    indices = range(min(count, len(dataset)))
    samples = [dataset.read(index) for index in indices]
    theirs = _by_transformers(model, folder, dataset, samples)
    ours = _by_neva(model, samples)
    return [
        SampleLoss(sample.record_id, len(sample.media), _num_labels(sample), *pair)
        for sample, pair in zip(samples, zip(theirs, ours, strict=True), strict=True)
    ]


def _dataset(
    model: LazyModel, data_path: Path, image_folder: Path | None, data: dict[str, Any]
) -> ConversationDataset:
    section = model.config.copy()
    with open_dict(section):
        images = None if image_folder is None else str(image_folder)
        section.data.merge_with({"data_path": str(data_path), "image_folder": images, **data})
        section.encoder_seq_length = model.language.max_positions
    with model.tokenizer_dir() as folder:
        section.tokenizer = {"library": "huggingface", "type": str(folder), "model": None}
        dataset = build_dataset(section, model.vision, load_tokenizer(section.tokenizer))
    dataset.media = build_media_reader(section, model.vision, native_processor(model))
    return dataset


def _num_labels(sample: Sample) -> int:
    return int((sample.labels[1:] != IGNORE_INDEX).sum())


@torch.no_grad()
def _by_transformers(
    model: LazyModel, folder: Path, dataset: ConversationDataset, samples: Sequence[Sample]
) -> list[float]:
    config, layout = read_config(folder), layout_of(model)
    image_id = int(config.get("image_token_id", config.get("image_token_index", 32001)))
    processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
    theirs = getattr(transformers, layout.model_class).from_pretrained(
        folder, dtype=torch.float32, local_files_only=True
    )
    losses = []
    for index, sample in enumerate(samples):
        ids = sample.input_ids[None].masked_fill(sample.input_ids[None] == IMAGE_TOKEN_ID, image_id)
        images = [dataset.media.image(medium.source) for medium in dataset.media_of(index)]
        given = processor([images] if layout is IDEFICS else images, return_tensors="pt") if images else {}
        labels, mask = sample.labels[None], torch.ones_like(ids)
        output = theirs.eval()(input_ids=ids, attention_mask=mask, labels=labels, **given)
        if output.logits.shape[-1] > model.language.vocab_size:
            output.loss = theirs.loss_function(
                output.logits[..., : model.language.vocab_size], labels, model.language.vocab_size
            )
        losses.append(float(output.loss))
    return losses


def _by_neva(model: LazyModel, samples: Sequence[Sample]) -> list[float]:
    with loaded(model) as native:
        return [float(native(**inputs).double().mean()) for inputs in map(_inputs, samples)]


def _inputs(sample: Sample) -> dict[str, Tensor | Sequence[Any] | None]:
    """Returns the arguments of the native model, as a batch of one has them."""
    shifted = torch.cat([sample.labels[1:], sample.labels.new_full((1,), IGNORE_INDEX)])
    return {
        "input_ids": sample.input_ids[None],
        "pixel_values": sample.pixel_values if sample.media else None,
        "labels": shifted[None],
        "feature_order": feature_order(sample.media),
        "pictures": picture_shapes(sample.media),
    }


def rows(losses: Sequence[SampleLoss]) -> Iterator[str]:
    """Yields the lines of a table."""
    yield f"{'record':<24} {'images':>6} {'labels':>6} {'transformers':>12} {'neva':>12} {'difference':>10}"
    for loss in losses:
        yield (
            f"{loss.record_id:<24.24} {loss.images:>6} {loss.label_tokens:>6} {loss.theirs:>12.6f} {loss.ours:>12.6f} "
            f"{loss.difference:>10.1e}"
        )
