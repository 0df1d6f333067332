"""Matrices of the language model in 4 or 8 bits: frozen ones beside adapters, as QLoRA has them, and where it answers.

Source: https://arxiv.org/abs/2305.14314. bitsandbytes packs and unpacks; the products are torch's, of a matrix that is
unpacked for each and kept by none.
Its own modules repack a weight when they first answer in eval mode, after which adapters get no gradient: none is used.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neva.config.keys.peft import INT8, NF4
from neva.errors import ConfigError
from neva.families.adapters import BLOCK
from neva.families.configs import LanguageConfig
from neva.model.hugging_face import HuggingFaceLanguageModel
from neva.model.llava import NevaModel
from neva.model.matrices import decoder_matrices


def quantise_base(models: Iterable[NevaModel], language: LanguageConfig) -> None:
    """Packs what adapters are trained beside, in place, where they are adapters of QLoRA."""
    if language.lora is not None and language.lora.packing is not None:
        for model in models:
            quantise(model, language.lora.packing)


def quantise(model: NevaModel, kind: str) -> None:
    """Packs the matrices of all decoder layers in place, in the precision of the packed model: `nf4` or `int8`.

    Embedding, head, norms, routers and tower stay as they are. Packed bytes lie in parameters of the model's own dtype,
    so that FSDP shards and gathers them like any other.

    Raises:
        ConfigError: bitsandbytes is not installed, a matrix has no whole blocks, or transformers runs the model.
    """
    try:
        functional: Any = import_module("bitsandbytes.functional")
    except ImportError as error:
        raise ConfigError(
            f"packing matrices as {kind} needs bitsandbytes: pip install 'neva[qlora]', or leave them as they are"
        ) from error
    if isinstance(model.language_model, HuggingFaceLanguageModel):
        raise ConfigError(
            f"packing matrices as {kind} goes with Megatron's language models; this one is run by transformers "
            "(model.language_backend=huggingface): leave its matrices as they are"
        )
    for layer in model.language_model.decoder.layers:
        for matrix in decoder_matrices(layer):
            _pack(matrix, kind, functional)


def scales_of(model: nn.Module) -> Iterator[Tensor]:
    """Yields what packed matrices keep beside their bytes."""
    for module in model.modules():
        if isinstance(getattr(module, "packed", None), Packed):
            yield module.get_buffer("scales")


def _pack(matrix: Any, kind: str, functional: Any) -> None:
    weight = matrix.weight.detach()
    rows, columns = weight.shape
    if rows * columns % BLOCK or columns % 8:
        raise ConfigError(
            f"a matrix of {rows} x {columns} has no whole blocks of {BLOCK} elements and cannot be packed as {kind}: "
            "leave the matrices as they are (model.peft.peft_scheme=lora, inference.quantization=null)"
        )
    if kind == NF4:
        packed, state = functional.quantize_4bit(weight.contiguous(), blocksize=BLOCK, quant_type=NF4)
        scales = state.absmax
    else:
        assert kind == INT8
        scales = weight.abs().amax(1).float().clamp(min=torch.finfo(torch.float32).tiny)
        packed = (weight.float() / scales[:, None] * 127).round().to(torch.int8)
    stored = packed.view(torch.uint8).reshape(rows, -1).view(weight.dtype)
    matrix.weight = nn.Parameter(stored, requires_grad=False)
    matrix.register_buffer("scales", scales, persistent=False)
    matrix.packed = Packed(kind, (rows, columns), functional)
    matrix._forward_impl = lambda input, weight, bias=None, **_: matrix.packed.product(
        input, weight, matrix.scales, bias
    )


class Packed:
    """How the weight of a matrix is packed."""

    def __init__(self, kind: str, shape: tuple[int, int], functional: Any) -> None:
        self.kind, self.shape, self._functional = kind, shape, functional

    def product(self, hidden: Tensor, weight: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
        """Returns `F.linear` with the unpacked weight."""
        product: Tensor = _Product.apply(hidden, weight, scales, self)
        return product if bias is None else product + bias

    def unpacked(self, weight: Tensor, scales: Tensor) -> Tensor:
        """Returns the weight [O, I] in its own dtype."""
        packed = weight.detach().contiguous().view(torch.uint8)
        if self.kind == INT8:
            return (packed.view(torch.int8).float() * (scales[:, None] / 127)).to(weight.dtype)
        state = self._functional.QuantState(
            absmax=scales,
            # one row: bitsandbytes 0.50's kernel for AVX-512 errs where a row ends inside a block
            shape=torch.Size((1, math.prod(self.shape))),
            code=self._functional.get_4bit_type(NF4, device=weight.device),
            blocksize=BLOCK,
            quant_type=NF4,
            dtype=weight.dtype,
        )
        found: Tensor = self._functional.dequantize_4bit(packed.reshape(-1, 1), state)
        return found.view(self.shape)


class _Product(torch.autograd.Function):
    """A product that keeps the packed weight alone for its backward pass, where the input alone has a gradient."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, scales: Tensor, packed: Packed) -> Tensor:
        ctx.save_for_backward(weight, scales)
        ctx.packed = packed
        return F.linear(hidden, packed.unpacked(weight, scales))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        weight, scales = ctx.saved_tensors
        return gradients[0] @ ctx.packed.unpacked(weight, scales), None, None, None
