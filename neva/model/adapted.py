"""Megatron's parallel matrices with an adapter beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.mlp import apply_swiglu_sharded_factory
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
from torch import Tensor, nn

from neva.families.adapters import is_halved
from neva.families.configs import LanguageConfig
from neva.model.adapters import Adapter
from neva.model.dora import DoraAdapter
from neva.model.whole_adapters import WholeAdapter


def adapter_of(matrix: ColumnParallelLinear | RowParallelLinear, place: Mapping[str, Any]) -> Adapter:
    """Returns a new adapter beside a matrix; `place` are its further arguments."""
    kind = DoraAdapter if place["language"].lora.has_magnitudes else Adapter
    return kind(matrix, **place)


class AdaptedColumnLinear(ColumnParallelLinear):
    """Megatron's matrix that is split by rows, with an adapter; `place` are the further arguments of `Adapter`."""

    def __init__(self, *positional: Any, place: Mapping[str, Any], **arguments: Any) -> None:
        super().__init__(*positional, **arguments)
        self.adapter = adapter_of(self, place)

    def forward(self, input_: Tensor, *others: Any, **arguments: Any) -> tuple[Tensor, Tensor | None]:
        """See Megatron's."""
        output, bias = super().forward(input_, *others, **arguments)
        return self.adapter.beside(output, input_, self), bias

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: Any = None
    ) -> dict[str, Any]:
        """Returns the sharded tensors, those of the adapter too."""
        return _sharded(self, {"weight": 0, "bias": 0}, prefix, sharded_offsets, metadata)


class AdaptedRowLinear(RowParallelLinear):
    """The same of a matrix that is split by columns."""

    def __init__(self, *positional: Any, place: Mapping[str, Any], **arguments: Any) -> None:
        super().__init__(*positional, **arguments)
        self.adapter = adapter_of(self, place)

    def forward(self, input_: Tensor) -> tuple[Tensor, Tensor | None]:
        """See Megatron's."""
        output, bias = super().forward(input_)
        return self.adapter.beside(output, input_, self), bias

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: Any = None
    ) -> dict[str, Any]:
        """Returns the sharded tensors, those of the adapter too."""
        return _sharded(self, {"weight": 1}, prefix, sharded_offsets, metadata)


def _sharded(
    matrix: AdaptedColumnLinear | AdaptedRowLinear,
    axes: dict[str, int],
    prefix: str,
    offsets: tuple[Any, ...],
    metadata: Any,
) -> dict[str, Any]:
    tensors = matrix.state_dict(prefix="", keep_vars=True)
    own: Iterator[tuple[str, Any]] = matrix.adapter.named_parameters(prefix="adapter")
    split = {
        name: tensor.partition_dim for name, tensor in own if getattr(tensor, "tensor_model_parallel", False)
    }
    found: dict[str, Any] = make_sharded_tensors_for_checkpoint(
        tensors, prefix, axes | split, offsets, tp_group=matrix.tp_group, dp_cp_group=metadata["dp_cp_group"]
    )
    for name in split:
        if is_halved(matrix.adapter.site, name.split(".")[1]):
            found[prefix + name] = apply_swiglu_sharded_factory(found[prefix + name], offsets)
    return found


def fill_magnitudes(model: nn.Module) -> None:
    """Measures the rows beside all adapters of a model that has its weights; every tensor-parallel rank calls it."""
    for matrix in model.modules():
        adapter = getattr(matrix, "adapter", None)
        if isinstance(adapter, DoraAdapter | WholeAdapter):
            adapter.measure(matrix)  # type: ignore[arg-type]


def with_adapter(kind: type, language: LanguageConfig, site: str, layer: int, seed: int) -> ModuleSpec:
    """Returns the spec of a matrix of a layer, counted from 0: Megatron's `kind`, with its adapter if it has one."""
    if language.lora is None or not language.lora.pieces(site, layer):
        return ModuleSpec(module=kind)
    adapted = AdaptedColumnLinear if kind is ColumnParallelLinear else AdaptedRowLinear
    place = {"language": language, "site": site, "layer": layer, "seed": seed}
    return ModuleSpec(module=adapted, params={"place": place})
