"""Fills a `NevaModel` with weights from Hugging Face folders or `.nemo` files: strict, one tensor in memory at a time.

Every rank reads tensors under global names and keeps its shard: its rows or columns under tensor parallel, its layers
under pipeline parallel, its experts under expert parallel, vocabulary rows with the padding of its layout. Files are
mapped, so that the ranks of a node share what one of them has read.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from neva.constants import (
    ADAPTER,
    ALL_PARTS,
    LANGUAGE_MODEL,
    SECOND_TOWER,
    VISION_TOWER,
    VOCABULARY,
    part_of,
)
from neva.families.adapters import WHOLE
from neva.families.configs import LanguageConfig
from neva.families.mapping import ConversionError
from neva.families.naming import SECOND, TOWER
from neva.formats.nemo import open_nemo
from neva.weights.fingerprint import Fingerprint
from neva.weights.parts import language_weights, second_tower_weights, tower_weights

if TYPE_CHECKING:
    from neva.weights.resolve import Origin

LAYER = re.compile(r"(language_model\.decoder\.layers\.)(\d+)(\..*)")
EXPERT = re.compile(r"(.*\.mlp\.experts)\.local_experts\.(\d+)(\..*)")
GATED = re.compile(rf"\.linear_fc1\.(weight|bias)$|\.linear_fc1{re.escape(ADAPTER)}{WHOLE}\.")
"""Of two matrices stacked: a rank has its share of each."""
TIED_COPY = "language_model.output_layer.weight"
TOWERS = {VISION_TOWER: (TOWER, tower_weights), SECOND_TOWER: (SECOND, second_tower_weights)}
"""Prefix of the native names of each tower, and what reads its tensors."""


def load_parts(model: nn.Module, origins: Mapping[str, Origin], language: LanguageConfig) -> dict[str, str]:
    """Fills each part that has an origin, completely.

    Returns:
        The fingerprints of the parts that were read, if the model has adapters; none of others.

    Raises:
        CheckpointError: names or shapes do not fit; it names the tensors.
    """
    found = {}
    for part, origin in origins.items():
        if origin.path is None:
            continue
        seen = None if language.lora is None else Fingerprint()
        if origin.is_held:
            weights = open_nemo(origin.path).weights
            load_native(model, weights, language.vocab_size, (part,), seen)
        elif part == LANGUAGE_MODEL:
            load_language_model(model, origin.path, language, seen)
        else:  # projector and adapters have no folder of their own
            load_vision_tower(model, origin.path, part, seen)
        if seen:  # a pipeline stage without the tower reads none
            found[part] = str(seen)
    return found


def load_language_model(
    model: nn.Module, source: str | Path, language: LanguageConfig, seen: Fingerprint | None = None
) -> None:
    """Fills the language model from a Hugging Face folder (text or LLaVA) or from a `.nemo` that holds one.

    Raises:
        CheckpointError: names or shapes do not fit `language`; it names the tensors. Nothing may be missing.
    """
    load_native(model, language_weights(source, language), language.vocab_size, (LANGUAGE_MODEL,), seen)


def load_vision_tower(
    model: nn.Module, source: str | Path, part: str = VISION_TOWER, seen: Fingerprint | None = None
) -> None:
    """Fills a tower from a Hugging Face folder (CLIPModel, CLIPVisionModel, SigLIP, LLaVA …) or a `.nemo`.

    Does nothing on a pipeline stage without a tower.

    Raises:
        CheckpointError: names or shapes do not fit; it names the tensors.
    """
    _, weights_of = TOWERS[part]
    tower = getattr(model, part)
    if tower is not None:
        load_native(model, weights_of(source, tower.config), parts=(part,), seen=seen)


def load_native(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    vocab_size: int | None = None,
    parts: Collection[str] | None = None,
    seen: Fingerprint | None = None,
) -> None:
    """Copies this rank's shard of each whole tensor into the parameter of that name.

    Tensors of other pipeline stages and of experts of other ranks are not read, unless they have to be seen.

    Args:
        model: the model, or one pipeline stage of it.
        weights: whole tensors under native names, such as `open_nemo(path).weights`.
        vocab_size: number of vocabulary rows before padding.
        parts: fills these alone (`("projector",)` for stage 2), which must be complete; None: all.
        seen: is shown every tensor, and the same ones on every rank that has the part.

    Raises:
        ConversionError: names or shapes do not fit; it names the tensors.
    """
    parts = ALL_PARTS if parts is None else parts
    names = [name for name in weights if part_of(name) in parts]
    targets = _targets(model, parts)
    for name in names:
        if name not in targets and not _lives_elsewhere(model, name):
            raise ConversionError(f"the model has no parameter {name}")
    missing = sorted(name for name in targets.keys() - set(names) if not name.startswith(_unused(model)))
    if missing:
        raise ConversionError(f"no weights for {len(missing)} parameters: {', '.join(missing[:5])}")
    group: Any = model.get_submodule(LANGUAGE_MODEL).pg_collection.tp  # type: ignore[union-attr]
    pairs = ((name, weights[name]) for name in names if seen is not None or name in targets)
    for name, tensor in pairs if seen is None else seen.watch(pairs):
        for parameter in targets.get(name, ()):
            _copy_shard(name, tensor, parameter, vocab_size, group)


def _targets(model: nn.Module, parts: Collection[str]) -> dict[str, list[nn.Parameter]]:
    """Returns which parameters of this rank each whole tensor fills: one, and the last stage's copy of a tied head."""
    targets = {
        global_name(model, name): [parameter]
        for name, parameter in model.named_parameters()
        if part_of(name) in parts
    }
    if _is_tied(model) and TIED_COPY in targets:
        targets.setdefault(VOCABULARY[0], []).extend(targets.pop(TIED_COPY))
    return targets


def _unused(model: nn.Module) -> tuple[str, ...]:
    """Returns what the names of tensors begin with that no hidden state of a tower depends on."""
    towers = ((prefix, getattr(model, part, None)) for part, (prefix, _) in TOWERS.items())
    return tuple(
        prefix + name for prefix, tower in towers if tower is not None for name in tower.family.unused
    )


def global_name(model: nn.Module, name: str) -> str:
    """Returns the name of a parameter in the whole model: stages number their layers, ranks their experts from 0."""
    match = LAYER.fullmatch(name)
    if match is None:
        return name
    layer = model.get_submodule(f"{match[1]}{match[2]}")
    rest = match[3]
    if (of_expert := EXPERT.fullmatch(name)) is not None:
        first: Any = model.get_submodule(of_expert[1]).first
        rest = rest.replace(f".{of_expert[2]}.", f".{first + int(of_expert[2])}.", 1)
    return f"{match[1]}{layer.layer_number - 1}{rest}"  # type: ignore[operator]


def _is_tied(model: nn.Module) -> bool:
    return bool(getattr(model, "share_embeddings_and_output_weights", False))


def _lives_elsewhere(model: nn.Module, name: str) -> bool:
    """Whether `name` belongs to another pipeline stage of this model, or to an expert of another rank."""
    of_expert, config = EXPERT.fullmatch(name), cast(Any, model.config)
    if of_expert is not None and config.expert_model_parallel_size > 1:
        return int(of_expert[2]) < config.num_moe_experts
    return not (model.pre_process and model.post_process) and (
        LAYER.fullmatch(name) is not None
        or (
            not model.pre_process
            and name.startswith((TOWER, SECOND, "projector.", "language_model.embedding."))
        )
        or (
            not model.post_process
            and name.startswith(("language_model.output_layer.", "language_model.decoder.final_"))
        )
    )


@torch.no_grad()
def _copy_shard(
    name: str,
    tensor: Tensor,
    parameter: nn.Parameter,
    vocab_size: int | None,
    group: torch.distributed.ProcessGroup,
) -> None:
    dim = getattr(parameter, "partition_dim", -1)
    is_parallel = getattr(parameter, "tensor_model_parallel", False)
    rank, size = (group.rank(), group.size()) if is_parallel else (0, 1)
    shape = list(parameter.shape)
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
        halves = tensor.chunk(2) if GATED.search(name) else (tensor,)
        tensor = torch.cat([half.chunk(size, dim)[rank] for half in halves])
    parameter.copy_(tensor)
