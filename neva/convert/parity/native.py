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
    with loaded(model) as native:
        return _logits(native, answered)


@contextmanager
def loaded(model: LazyLanguageModel) -> Iterator[NevaModel]:
    """Yields the model with its weights, in float32, for evaluation."""
    with cuda_on_cpu.cpu_only(), _single_process(), torch.no_grad():
        native = _build(model)
        load_native(native, model.weights, model.language.vocab_size)
        yield native.eval()


def _build(model: LazyLanguageModel) -> NevaModel:
    if isinstance(model, LazyModel):
        return build_model(model.vision, model.language, model.config.mm_cfg.mm_mlp_adapter_type)
    return NevaModel(build_language_model(model.language), None, None)


def _logits(native: NevaModel, answered: Sequence[ReferenceOutput]) -> list[Tensor]:
    logits = []
    for item in answered:
        ids = item.sample.input_ids.clone()
        for placeholder in item.sample.placeholder_ids:
            ids[ids == placeholder] = IMAGE_TOKEN_ID
        pixels, order = item.sample.pixel_values, item.sample.feature_order
        if pixels is not None and pixels.ndim == 5:  # tiles below their image
            pixels = pixels.flatten(0, 1)
        if item.sample.pictures or item.sample.pixel_values_videos is not None:
            pixels = item.sample.picture_pixels
        logits.append(native(ids, pixels, feature_order=order, pictures=item.sample.pictures)[0].float())
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
