"""The proof of a folder with a tower: transformers reads it, Megatron the native weights, both get the same inputs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import transformers
from transformers import AutoProcessor

from neva.convert.hf_layouts import layout_of
from neva.convert.lazy_model import LazyModel
from neva.convert.parity.figures import configuration_differences, write_parity
from neva.convert.parity.native import native_logits
from neva.convert.parity.reference import (
    image_processor_differences,
    reference_outputs,
    tokenizer_differences,
)
from neva.convert.parity.samples import ParityInput, chat_inputs


def prove_llava(model: LazyModel, folder: Path) -> None:
    """Proves an exported folder and writes `parity.json`.

    Raises:
        ParityError: a figure is not as it must be.
    """
    processor = AutoProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
    inputs = chat_inputs(processor, model)
    prove_inputs(model, folder, inputs, image_processor_differences(model, processor))


def prove_inputs(
    model: LazyModel, folder: Path, inputs: Sequence[ParityInput], image_processor: list[str]
) -> None:
    """Compares the two on these inputs and writes `parity.json`.

    `image_processor` are the differences found between the folder's processor and the native one.

    Raises:
        ParityError: a figure is not as it must be.
    """
    model_class = getattr(transformers, layout_of(model).model_class)
    answered, not_loaded = reference_outputs(model_class, folder, inputs)
    with model.tokenizer_dir() as tokenizer_dir:
        tokenizer = tokenizer_differences(folder, tokenizer_dir)
    differences = {
        "configuration": configuration_differences(folder, model.language, model.vision),
        "weights": not_loaded,
        "tokenizer": tokenizer,
        "image_processor": image_processor,
    }
    write_parity(folder, answered, native_logits(model, answered), differences)
