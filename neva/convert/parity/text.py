"""The proof of an exported language model."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoModelForCausalLM

from neva.convert.lazy_model import LazyLanguageModel
from neva.convert.parity.figures import configuration_differences, write_parity
from neva.convert.parity.native import native_logits
from neva.convert.parity.reference import reference_outputs, tokenizer_differences
from neva.convert.parity.samples import text_input


def prove_text(model: LazyLanguageModel, folder: Path) -> None:
    """Proves an exported folder and writes `parity.json`.

    Raises:
        ParityError: a figure is not as it must be.
    """
    with model.tokenizer_dir() as tokenizer_dir:
        sample = text_input(tokenizer_dir, model.language.vocab_size)
        has_tokenizer = (tokenizer_dir / "tokenizer.json").is_file()
        tokenizer = tokenizer_differences(folder, tokenizer_dir) if has_tokenizer else []
    answered, not_loaded = reference_outputs(AutoModelForCausalLM, folder, [sample])
    differences = {
        "configuration": configuration_differences(folder, model.language, None),
        "weights": not_loaded,
        "tokenizer": tokenizer,
    }
    write_parity(folder, answered, native_logits(model, answered), differences)
