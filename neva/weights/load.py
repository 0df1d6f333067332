"""Fill a `NevaModel` with weights from Hugging Face folders or a `.nemo` file: strict, one tensor in memory
at a time.

Every rank reads whole tensors under global names and keeps its share: its rows or columns under tensor
parallel, its layers under pipeline parallel, vocabulary rows with the padding of its layout.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from neva.families.configs import LanguageConfig
from neva.families.language import language_prefixes, language_table
from neva.families.mapping import ConversionError
from neva.families.naming import LANGUAGE, LLAVA_HF, LLAVA_ORIGINAL, TEXT, TOWER, HFNaming, tower_prefix
from neva.families.vision import POOLING, tower_table
from neva.formats.hf_folder import FolderWeights
from neva.formats.nemo import VOCABULARY, open_nemo
from neva.formats.nemo_header import CONFIG_FILE
from neva.weights.lazy import Filtered

LAYER = re.compile(r"(language_model\.decoder\.layers\.)(\d+)(\..*)")
GATED = "mlp.linear_fc1."
UNUSED_TOWER_PART = TOWER + POOLING  # SigLIP's pooling: no hidden state depends on it
TIED_COPY = "language_model.output_layer.weight"


def load_language_model(model: nn.Module, source: str | Path, shape: LanguageConfig) -> None:
    """Fills the language model from a Hugging Face folder (text or LLaVA) or from a `.nemo` file that holds
    one.

    Raises ValueError naming the tensors when names or shapes do not fit `shape`; nothing may be missing.
    """
    stored = replace(shape, padded_vocab_size=shape.vocab_size)
    if is_nemo(source):
        weights = open_nemo(source).weights
        load_sharded(
            model,
            ((name, weights[name]) for name in Filtered(weights, LANGUAGE)),
            (LANGUAGE,),
            shape.vocab_size,
        )
        return
    weights = FolderWeights(source)
    layout = language_layout(weights)
    table = language_table(stored, layout)
    load_sharded(model, table.to_native(language_part(weights, layout, shape)), (LANGUAGE,), shape.vocab_size)


def load_vision_tower(model: nn.Module, source: str | Path) -> None:
    """Fills the vision tower from a Hugging Face folder (CLIPModel, CLIPVisionModel, SigLIP, LLaVA …) or a
    `.nemo` file.

    Does nothing on a pipeline stage without a tower. Raises ValueError naming the tensors when names or
    shapes do not fit.
    """
    if is_nemo(source):
        weights = open_nemo(source).weights
        load_sharded(model, ((name, weights[name]) for name in Filtered(weights, TOWER)), (TOWER,))
        return
    shapes = {
        name.removeprefix(TOWER): tuple(parameter.shape)
        for name, parameter in model.named_parameters()
        if name.startswith(TOWER)
    }
    if not shapes:
        return
    weights = FolderWeights(source)
    prefix = tower_prefix(weights)
    if not any(prefix + POOLING in name for name in weights):
        shapes = {name: shape for name, shape in shapes.items() if not name.startswith(POOLING)}
    tower = Filtered(weights, prefix) if "vision_tower" in prefix else weights
    load_sharded(model, tower_table(shapes, prefix).to_native(tower), (TOWER,))


def load_native(
    model: nn.Module, weights: Mapping[str, Tensor], vocab_size: int, prefixes: tuple[str, ...] | None = None
) -> None:
    """Fills the model from native (name, whole tensor) weights, such as `open_nemo(path).weights`.

    `prefixes` restricts it to some parts (`("projector.",)` for stage 2); the parts named must be complete.
    """
    chosen = Filtered(weights, *prefixes) if prefixes else weights
    load_sharded(model, ((name, chosen[name]) for name in chosen), prefixes or ("",), vocab_size)


def is_nemo(source: str | Path) -> bool:
    """Whether `source` is a `.nemo` file or an extracted one, not a Hugging Face folder."""
    path = Path(source)
    return path.is_file() or (path / CONFIG_FILE).is_file()


def language_part(weights: Mapping[str, Tensor], layout: HFNaming, language: LanguageConfig) -> Filtered:
    """The language model's tensors of a folder in `layout`."""
    others = (
        (layout.tower.split("vision_tower.")[0] + "vision_tower.", layout.projector) if layout.tower else ()
    )
    return Filtered(weights, *language_prefixes(language, layout), without=others)


def language_layout(names: Iterable[str]) -> HFNaming:
    """The layout in which a folder stores its language model, told by its names."""
    names = set(names)
    if any(name.startswith(LLAVA_HF.language) for name in names):
        return LLAVA_HF
    return LLAVA_ORIGINAL if any(name.startswith("model.mm_projector.") for name in names) else TEXT


def load_sharded(
    model: nn.Module,
    pairs: Iterable[tuple[str, Tensor]],
    prefixes: tuple[str, ...],
    vocab_size: int | None = None,
) -> None:
    """Copies each whole tensor into this rank's share of the parameter of that name.

    Every parameter under `prefixes` must be filled, or ValueError names those that were not. Names of layers
    and parts that live on other pipeline stages are skipped. `vocab_size` is the number of rows before
    padding.
    """
    parameters = {
        global_name(model, name): parameter
        for name, parameter in model.named_parameters()
        if name.startswith(prefixes)
    }
    tied_copy = parameters.pop(TIED_COPY, None) if _is_tied(model) else None
    remaining = set(parameters)
    for name, tensor in pairs:
        if name == VOCABULARY[0] and tied_copy is not None:
            _copy(name, tensor, tied_copy, vocab_size)
        if name in parameters:
            _copy(name, tensor, parameters[name], vocab_size)
            remaining.discard(name)
        elif not _lives_elsewhere(model, name):
            raise ConversionError(f"the model has no parameter {name}")
    missing = sorted(name for name in remaining if not name.startswith(UNUSED_TOWER_PART))
    if missing:
        raise ConversionError(f"no weights for {len(missing)} parameters: {', '.join(missing[:5])}")


def global_name(model: nn.Module, name: str) -> str:
    """The name of a parameter counted over all pipeline stages: a stage numbers its layers from 0."""
    match = LAYER.fullmatch(name)
    if match is None:
        return name
    layer = model.get_submodule(f"{match[1]}{match[2]}")
    return f"{match[1]}{layer.layer_number - 1}{match[3]}"  # type: ignore[operator]


def _is_tied(model: nn.Module) -> bool:
    return bool(getattr(model, "share_embeddings_and_output_weights", False))


def _lives_elsewhere(model: nn.Module, name: str) -> bool:
    """Whether `name` belongs to another pipeline stage of this model."""
    return not (model.pre_process and model.post_process) and (
        LAYER.fullmatch(name) is not None
        or (not model.pre_process and name.startswith((TOWER, "projector.", "language_model.embedding.")))
        or (
            not model.post_process
            and name.startswith(("language_model.output_layer.", "language_model.decoder.final_"))
        )
    )


@torch.no_grad()
def _copy(name: str, tensor: Tensor, parameter: nn.Parameter, vocab_size: int | None) -> None:
    dim = getattr(parameter, "partition_dim", -1)
    is_parallel = getattr(parameter, "tensor_model_parallel", False)
    shape = list(parameter.shape)
    rank, size = _tensor_parallel() if is_parallel else (0, 1)
    if is_parallel:
        shape[dim] *= size
    if name in VOCABULARY and vocab_size is not None:
        if len(tensor) != vocab_size or tensor.shape[1] != shape[1]:
            raise ConversionError(
                f"{name} is {list(tensor.shape)}, the model expects {[vocab_size, shape[1]]} without padding"
            )
        tensor = torch.cat([tensor, tensor.new_zeros(shape[0] - vocab_size, shape[1])])
    if list(tensor.shape) != shape:
        raise ConversionError(f"{name} is {list(tensor.shape)}, the model expects {shape}")
    if size > 1:
        halves = tensor.chunk(2) if GATED in name else (tensor,)
        tensor = torch.cat([half.chunk(size, dim)[rank] for half in halves])
    parameter.copy_(tensor)


def _tensor_parallel() -> tuple[int, int]:
    from megatron.core import parallel_state

    return (
        parallel_state.get_tensor_model_parallel_rank(),
        parallel_state.get_tensor_model_parallel_world_size(),
    )
