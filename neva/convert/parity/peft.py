"""The proof of a peft folder: peft loads it onto the exported model, Megatron has the merged weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from transformers import AutoProcessor

from neva.convert.hf_layouts import layout_of
from neva.convert.lazy_model import LazyModel, merged
from neva.convert.parity.figures import write_parity
from neva.convert.parity.native import native_logits
from neva.convert.parity.reference import reference_outputs
from neva.convert.parity.samples import chat_inputs
from neva.convert.writers.llava_hf import write_llava_hf
from neva.errors import ConfigError
from neva.families.naming import PROJECTOR
from neva.weights.lazy import Cast, Chained, Filtered


@dataclass(frozen=True)
class _OnTop:
    """Loads a model of transformers, and peft's adapters onto it, with the interface of a class of models."""

    model_class: Any
    base: Path

    def from_pretrained(self, folder: Path, **settings: Any) -> tuple[Any, dict[str, Any]]:
        from peft import PeftModel

        model, info = self.model_class.from_pretrained(self.base, **settings)
        return PeftModel.from_pretrained(model, folder), info


def prove_adapters(model: LazyModel, folder: Path, dtype: torch.dtype | None) -> None:
    """Proves a written folder and adds `parity.json`.

    The model below it is exported without a trained projector: the folder has to bring it.

    Raises:
        ConfigError: peft is not installed.
        ParityError: a figure is not as it must be.
    """
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "the proof of a peft folder needs peft: pip install 'neva[peft]', or leave the proof out with --no-verify"
        ) from error
    own = Filtered(model.weights, PROJECTOR)
    blank = {name: torch.zeros_like(own[name]) for name in own}
    below = replace(
        model,
        weights=Chained(blank, model.weights),
        language=replace(model.language, lora=None),
        vision=replace(model.vision, lora=None),
        adapters=None,
    )
    exact = replace(
        model,
        weights=Cast(model.weights, torch.float32),
        adapters=None
        if model.adapters is None
        else Cast(Cast(model.adapters, dtype or model.dtype), torch.float32),
    )
    with TemporaryDirectory(dir=folder.parent) as name:
        base = Path(name)
        write_llava_hf(below, base, None)
        processor = AutoProcessor.from_pretrained(base, local_files_only=True, backend="pil")
        inputs = chat_inputs(processor, below)
        loader = _OnTop(getattr(transformers, layout_of(below).model_class), base)
        answered, not_loaded = reference_outputs(loader, folder, inputs, config_of=base)
        write_parity(folder, answered, native_logits(merged(exact), answered), {"weights": not_loaded})
