"""Adapters, and the projector that was trained with them, as a folder of Hugging Face's `peft`."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from neva.constants import VISION_TOWER
from neva.convert.lazy_model import LazyModel
from neva.convert.options import Options
from neva.convert.peft_folder import BODY, MODULES, peft_config, to_peft
from neva.convert.writers.proven_folder import proven_folder
from neva.errors import CheckpointError
from neva.families.connector import projector_table
from neva.families.language import language_table
from neva.families.naming import LANGUAGE, LLAVA_HF, PROJECTOR
from neva.formats.hf_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from neva.formats.json import write_json
from neva.formats.safetensors import TensorFileWriter
from neva.weights.lazy import Filtered


def write(model: LazyModel, target: Path, options: Options) -> None:
    """Writes the folder, and proves it on the model that it belongs to, as a llava-hf folder.

    Raises:
        CheckpointError: peft has no place for a tensor.
    """
    lora, adapters = model.language.lora, model.adapters
    assert lora is not None and adapters is not None
    if LLAVA_HF.connector != model.connector:
        raise CheckpointError(
            f"{model.name} has a {model.connector} projector, for which a peft folder has no place; expected "
            f"{LLAVA_HF.connector}: merge the adapters with --merge"
        )
    if model.base is not None and VISION_TOWER not in model.base.parts:
        raise CheckpointError(
            f"{model.name} holds a tower that trained, for which a peft folder has no place: merge the adapters with "
            "--merge"
        )
    modules = {name.removesuffix(".weight") for name in language_table(model.language, LLAVA_HF).hf_names}
    is_megatron = model.language.hf_config is None
    if is_megatron and not all(any(name.endswith(module) for name in modules) for module in MODULES.values()):
        raise CheckpointError(
            f"{model.name}: transformers joins matrices of such a language model that have adapters of their own here; "
            "merge the adapters with --merge"
        )

    def prove(folder: Path) -> None:
        from neva.convert.parity.peft import prove_adapters

        prove_adapters(model, folder, options.dtype)

    width, hidden = model.vision.feature_size, model.language.hidden_size
    projector = projector_table(model.connector, width, hidden, LLAVA_HF)
    tensors: dict[str, Tensor] = {
        BODY + name: tensor for name, tensor in projector.to_hf(Filtered(model.weights, PROJECTOR))
    } | to_peft(model.language, model.vision, adapters)
    with proven_folder(target, options, prove) as folder:
        base = model.base.parts if model.base else {}
        named = base.get(LANGUAGE.removesuffix("."), {}).get("path", "")
        write_json(folder / ADAPTER_CONFIG, peft_config(model.language, model.vision, named))
        with (folder / ADAPTER_WEIGHTS).open("wb") as stream:
            writer = TensorFileWriter(stream)
            for name, tensor in sorted(tensors.items()):
                writer.add(name, tensor if options.dtype is None else tensor.to(options.dtype))
            writer.finish()
