"""Runs the proof of an export: the written folder through transformers, the native weights through Megatron,
same inputs.

Float32 on one process, one model in memory at a time.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoProcessor,
    AutoTokenizer,
    LlavaForConditionalGeneration,
)

from neva.constants import IMAGE_TOKEN_ID
from neva.convert.lazy_model import LazyModel
from neva.convert.parity.figures import check, configuration_differences, parity_report, write_report
from neva.distributed import groups
from neva.families.configs import LanguageConfig
from neva.formats.hf_folder import write_json
from neva.model.build import build_model
from neva.model.language import LanguageModel, transformer_config
from neva.model.llava import NevaModel
from neva.weights.load import load_native

NEW_TOKENS = 16
TEXT = "Once upon a time"
QUESTIONS = ("What is in the picture?", "Describe the image in detail.", "How many colours are there?")
ROUND_TRIP_TEXTS = (
    *QUESTIONS,
    TEXT,
    "Hello  world\n\n1 + 1 = 2, naïve café 漢字 🙂",
    " leading and trailing ",
)


@dataclass(frozen=True)
class Sample:
    """Inputs as transformers takes them; `image_token_id` marks image positions in `input_ids` [1, S]."""

    input_ids: Tensor
    pixel_values: Tensor | None = None
    image_token_id: int | None = None


@dataclass(frozen=True)
class ReferenceOutput:
    """A sample continued by transformers' greedy answer, with the logits [S, V] of every position."""

    sample: Sample
    logits: Tensor
    answer_length: int


def prove_text(
    weights: Mapping[str, Tensor], shape: LanguageConfig, folder: Path, tokenizer_dir: Path | None
) -> None:
    """Proves an exported language model and writes `parity.json`. ParityError when a figure is not as it must
    be.
    """
    if tokenizer_dir is None or not (tokenizer_dir / "tokenizer.json").is_file():
        ids = torch.arange(1, 33).remainder(shape.vocab_size)[None]
        differences: list[str] = []
    else:
        ids = torch.tensor([Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json")).encode(TEXT).ids])
        differences = tokenizer_differences(folder, tokenizer_dir)
    answered, not_loaded = _reference(AutoModelForCausalLM, folder, [Sample(ids)])
    with _single_process():
        model = NevaModel(LanguageModel(transformer_config(shape), shape, True, True), None, None)
        load_native(model, weights, shape.vocab_size)
        native = _native_logits(model, answered)
    write_parity(
        folder, answered, native, not_loaded, differences, [], configuration_differences(folder, shape, None)
    )


def prove_llava(model: LazyModel, folder: Path) -> None:
    """Proves an exported llava-hf folder and writes `parity.json`. ParityError when a figure is not as it
    must be.
    """
    processor = AutoProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
    samples = _samples(processor, model.vision.image_size)
    answered, not_loaded = _reference(LlavaForConditionalGeneration, folder, samples)
    native = llava_logits(model, answered)
    with model.tokenizer_dir() as tokenizer_dir:
        tokenizer = tokenizer_differences(folder, tokenizer_dir)
    images = _image_processor_differences(model, processor)
    write_parity(
        folder,
        answered,
        native,
        not_loaded,
        tokenizer,
        images,
        configuration_differences(folder, model.language, model.vision),
    )


def llava_logits(model: LazyModel, answered: Sequence[ReferenceOutput]) -> list[Tensor]:
    with _single_process():
        native = build_model(model.vision, model.language, model.config.mm_cfg.mm_mlp_adapter_type)
        load_native(native, model.weights, model.language.vocab_size)
        return _native_logits(native, answered)


def write_parity(
    folder: Path,
    answered: Sequence[ReferenceOutput],
    native: Sequence[Tensor],
    weights: list[str],
    tokenizer: list[str],
    image_processor: list[str],
    configuration: list[str],
) -> None:
    report = parity_report(
        native, [item.logits for item in answered], [item.answer_length for item in answered]
    )
    report |= {
        "configuration_differences": configuration,
        "weights_differences": weights,
        "tokenizer_differences": tokenizer,
        "image_processor_differences": image_processor,
    }
    check(report)
    write_report(folder, {"verified": True, **report})


def _samples(processor: Any, size: int) -> list[Sample]:
    """A question about each picture, and one without a picture, in the export's own chat template."""
    samples = []
    image_token_id = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    for question, image in zip(QUESTIONS, parity_images(size), strict=True):
        content = [{"type": "image"}, {"type": "text", "text": question}]
        prompt = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        inputs = processor(images=image, text=prompt, return_tensors="pt")
        samples.append(Sample(inputs["input_ids"], inputs["pixel_values"], image_token_id))
    samples.append(Sample(processor(text=TEXT, return_tensors="pt")["input_ids"], None, image_token_id))
    return samples


def parity_images(size: int) -> list[Image.Image]:
    """Pictures that need no file: a wide one, a high one and a square one, of waves and noise."""
    generator = np.random.default_rng(0)
    images = []
    for number, (width, height) in enumerate(((2 * size, size), (size, 3 * size // 2), (size, size))):
        x, y = np.meshgrid(np.arange(width), np.arange(height))
        waves = [np.sin((x * (number + 1) + y * channel) / size * math.pi) for channel in range(3)]
        noise = generator.normal(0.0, 0.2, (height, width, 3))
        pixels = (np.stack(waves, -1) / 2 + 0.5 + noise).clip(0, 1) * 255
        images.append(Image.fromarray(pixels.astype(np.uint8)))
    return images


def _reference(
    model_class: Any, folder: Path, samples: Sequence[Sample]
) -> tuple[list[ReferenceOutput], list[str]]:
    """Greedy answers and logits of transformers, and the tensors that it missed or had no use for."""
    model, info = model_class.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
    )
    not_loaded = [
        f"transformers reports {kind.replace('_', ' ')}: {', '.join(sorted(map(str, names))[:5])}"
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
        if (names := info[kind])
    ]
    return answers(model.eval(), samples), not_loaded


@torch.no_grad()
def answers(model: Any, samples: Sequence[Sample]) -> list[ReferenceOutput]:
    """Greedy answers without the image token: one that stood in an answer would be asked for an image."""
    answered = []
    for sample in samples:
        images = {} if sample.pixel_values is None else {"pixel_values": sample.pixel_values}
        never = None if sample.image_token_id is None else [sample.image_token_id]
        mask = torch.ones_like(sample.input_ids)
        ids = model.generate(
            input_ids=sample.input_ids,
            attention_mask=mask,
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            suppress_tokens=never,
            **images,
        )
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), **images).logits[0].float()
        continued = Sample(ids, sample.pixel_values, sample.image_token_id)
        answered.append(ReferenceOutput(continued, logits, ids.shape[1] - sample.input_ids.shape[1] + 1))
    return answered


@torch.no_grad()
def _native_logits(model: NevaModel, answered: Sequence[ReferenceOutput]) -> list[Tensor]:
    model.eval()
    logits = []
    for item in answered:
        ids = item.sample.input_ids.clone()
        if item.sample.image_token_id is not None:
            ids[ids == item.sample.image_token_id] = IMAGE_TOKEN_ID
        logits.append(model(ids, item.sample.pixel_values)[0].float())
    return logits


@contextmanager
def _single_process() -> Iterator[None]:
    """Megatron's groups for one process, where there are none yet."""
    if torch.distributed.is_initialized():
        yield
        return
    groups.init_process_group(rank=0, world_size=1)
    groups.init_model_parallel(groups.ParallelSizes(), seed=0)
    try:
        yield
    finally:
        groups.destroy()


def tokenizer_differences(folder: Path, source: Path, loader: Any = AutoTokenizer) -> list[str]:
    """Texts that transformers' tokenizer of the export encodes otherwise than the native one."""
    exported = loader.from_pretrained(folder, local_files_only=True)
    native = Tokenizer.from_file(str(source / "tokenizer.json"))
    differences = []
    for text in ROUND_TRIP_TEXTS:
        expected = native.encode(text, add_special_tokens=False).ids
        found = exported(text, add_special_tokens=False)["input_ids"]
        if found != expected:
            differences.append(f"the tokenizer gives {found} for {text!r}, the native one {expected}")
    return differences


def _image_processor_differences(model: LazyModel, processor: Any) -> list[str]:
    """Pictures whose pixels from the export are not bit-equal to those that training saw."""
    with TemporaryDirectory() as folder:
        write_json(Path(folder) / "preprocessor_config.json", model.image_processor or {})
        native = AutoImageProcessor.from_pretrained(folder, backend="pil", local_files_only=True)
    differences = []
    for image in parity_images(model.vision.image_size):
        found = processor.image_processor(image, return_tensors="pt")["pixel_values"]
        if model.config.data.image_aspect_ratio == "pad":
            image = _on_square(image, tuple(int(mean * 255) for mean in native.image_mean))
        largest = (found - native(image, return_tensors="pt")["pixel_values"]).abs().max().item()
        if largest != 0.0:
            differences.append(f"pixels of a picture of {image.size} differ by {largest}")
    return differences


def _on_square(image: Image.Image, background: tuple[int, ...]) -> Image.Image:
    side = max(image.size)
    square = Image.new("RGB", (side, side), background)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square
