"""Logits of the native model, in float32 on one process, on the CPU as those that they are compared with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from neva.constants import IMAGE_TOKEN_ID
from neva.convert.lazy_model import LazyLanguageModel, LazyModel
from neva.convert.parity.reference import ReferenceOutput
from neva.distributed import cuda_on_cpu, groups
from neva.model.build import build_language_model, build_model
from neva.model.llava import NevaModel
from neva.weights.load import load_native


def native_logits(model: LazyLanguageModel, answered: Sequence[ReferenceOutput]) -> list[Tensor]:
    """Returns the logits [S, V] that the model gives for each continued input."""
    with cuda_on_cpu.cpu_only(), _single_process():
        native = _build(model)
        load_native(native, model.weights, model.language.vocab_size)
        return _logits(native, answered)


def _build(model: LazyLanguageModel) -> NevaModel:
    if isinstance(model, LazyModel):
        return build_model(model.vision, model.language, model.config.mm_cfg.mm_mlp_adapter_type)
    return NevaModel(build_language_model(model.language), None, None)


@torch.no_grad()
def _logits(native: NevaModel, answered: Sequence[ReferenceOutput]) -> list[Tensor]:
    native.eval()
    logits = []
    for item in answered:
        ids = item.sample.input_ids.clone()
        if item.sample.image_token_id is not None:
            ids[ids == item.sample.image_token_id] = IMAGE_TOKEN_ID
        pixels, order = item.sample.pixel_values, item.sample.feature_order
        if pixels is not None and pixels.ndim == 5:  # tiles below their image
            pixels = pixels.flatten(0, 1)
        logits.append(native(ids, pixels, feature_order=order)[0].float())
    return logits


@contextmanager
def _single_process() -> Iterator[None]:
    """Provides Megatron's groups for one process, where there are none yet."""
    if torch.distributed.is_initialized():
        yield
        return
    groups.init_process_group(rank=0, world_size=1)
    groups.init_model_parallel(groups.ParallelSizes(), seed=0)
    try:
        yield
    finally:
        groups.destroy()
