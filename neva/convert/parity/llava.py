"""The proof of a llava-hf folder: transformers reads it, Megatron the native weights, both get the same inputs."""

from __future__ import annotations

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
from neva.convert.parity.samples import chat_inputs


def prove_llava(model: LazyModel, folder: Path) -> None:
    """Proves an exported folder and writes `parity.json`.

    Raises:
        ParityError: a figure is not as it must be.
    """
    processor = AutoProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
    inputs = chat_inputs(processor, model)
    model_class = getattr(transformers, layout_of(model).model_class)
    answered, not_loaded = reference_outputs(model_class, folder, inputs)
    native = native_logits(model, answered)
    with model.tokenizer_dir() as tokenizer_dir:
        tokenizer = tokenizer_differences(folder, tokenizer_dir)
    differences = {
        "configuration": configuration_differences(folder, model.language, model.vision),
        "weights": not_loaded,
        "tokenizer": tokenizer,
        "image_processor": image_processor_differences(model, processor),
    }
    write_parity(folder, answered, native, differences)
