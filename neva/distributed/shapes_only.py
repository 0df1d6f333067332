"""Training without memory and without numbers: floating-point tensors have shapes alone, integers are real.

Everything that a step does is decided by shapes and by integers (ids, labels, positions), so a step on torch's meta
device, which computes shapes, goes the way of a real one. Where code asks for a number, it gets 1.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup
from torch.optim import optimizer as torch_optimizer
from torch.utils._pytree import tree_leaves, tree_map

from neva.distributed.collectives import Collectives
from neva.distributed.imagined import META
from neva.model import experts
from neva.model.experts import choose

aten = torch.ops.aten
_sdpa, _rms_norm, _tensor = F.scaled_dot_product_attention, F.rms_norm, torch.tensor
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
"""Types whose tensors have no memory; float64, in which a step sums up what it reports, has."""

CPU = torch.device("cpu")
"""Where integers are."""

INDEXED = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)


class ShapesOnly(Collectives):
    """Runs whatever a tensor without memory takes part in on the meta device, and counts bytes and messages.

    Messages go nowhere; what is received has a shape.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        """Bytes of all tensors without memory that are alive, and the most that were; FSDP empties some unseen."""
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See torch's."""
        kwargs = kwargs or {}
        if func.namespace == "c10d":
            self.count(func, args)
            return func(*tree_map(_stand_in, args), **kwargs)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if any(tensor.is_meta for tensor in tensors):
            made = self._of_shapes(func, args, kwargs)
        else:
            if not tensors and kwargs.get("dtype") in FLOATS:
                kwargs = {**kwargs, "device": META}
            elif not tensors and kwargs.get("dtype") is torch.int64:  # counts and positions, which are needed
                kwargs = {**kwargs, "device": CPU}
            made = func(*args, **kwargs)
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and tensor.is_meta:
                self._add(tensor.untyped_storage())
        return made

    def _of_shapes(self, func: Any, args: Any, kwargs: Any) -> Any:
        if func is aten._local_scalar_dense.default:
            return 1
        if func._schema.is_mutable and isinstance(args[0], Tensor) and not args[0].is_meta:
            return args[0]  # a real tensor stays what it is
        if func is aten.masked_select.default and not args[1].is_meta:
            return args[0].new_empty(int(args[1].count_nonzero()))
        if func in INDEXED:
            args = (args[0], [index for given in args[1] for index in _indices(given)], *args[2:])
        if kwargs.get("device") is not None:
            kwargs = {**kwargs, "device": META}
        return func(*tree_map(_without_memory, args), **tree_map(_without_memory, kwargs))

    def _add(self, storage: Any) -> None:
        if storage not in self._seen:
            self._seen.add(storage)
            size = storage.nbytes()
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._remove, size)

    def _remove(self, size: int) -> None:
        self.now -= size


def attended(query: Tensor, key: Tensor, value: Tensor, *others: Any, **options: Any) -> Tensor:
    """Returns what SDPA does, without memory what FlashAttention would."""
    if not _is_shape(query):
        return _sdpa(query, key, value, *others, **options)
    found: Tensor = _Flash.apply(query, key, value)
    return found


class _Flash(torch.autograd.Function):
    """FlashAttention's memory: it keeps queries, keys, values, its output and a number a row, and no scores."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Returns an output of the queries' shape."""
        output, sums = torch.empty_like(query), query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, sums)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        """Returns gradients of the shapes of queries, keys and values."""
        return tuple(map(torch.empty_like, ctx.saved_tensors[:3]))


def normed(hidden: Tensor, *others: Any, **options: Any) -> Tensor:
    """Returns what RMS norm does; without memory it keeps what its kernel on a GPU would, not what its formula does."""
    if not _is_shape(hidden):
        return _rms_norm(hidden, *others, **options)
    found: Tensor = aten._fused_rms_norm(hidden, *others, **options)[0]
    return found


def tensor_of(data: Any, *others: Any, **options: Any) -> Tensor:
    """Returns what `torch.tensor` does, which takes no tensors without memory for the numbers of a list."""
    if any(map(_is_shape, tree_leaves(data))):
        return _stacked(data)
    return _tensor(data, *others, **options)


def _stacked(value: Any) -> Tensor:
    """Returns lists in lists of numbers as a tensor."""
    if isinstance(value, list):
        return torch.stack([_stacked(each) for each in value])
    return torch.as_tensor(value, device=META)


def _is_shape(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_meta


def _without_memory(value: Any) -> Any:
    return value.to(META) if isinstance(value, Tensor) and not value.is_meta else value


def _stand_in(value: Any) -> Any:
    """Returns an empty tensor in the place of one without memory: groups take real ones alone, of as many rows."""
    return torch.empty((*value.shape[:1], 0), dtype=value.dtype) if _is_shape(value) else value


def _indices(given: Tensor | None) -> list[Tensor | None]:
    """Returns what an index chooses as positions, whose number is known; of a mask, one for each of its dims."""
    if given is None or given.is_meta or given.dtype != torch.bool:
        return [given]
    return [*given.nonzero().unbind(1)]


def evenly_chosen(logits_TE: Tensor, topk: int, pre_softmax: bool) -> tuple[Tensor, Tensor]:
    """Returns what a router does, with the numbers of experts that take turns: each serves as many tokens."""
    weights_Tk, _ = choose(logits_TE, topk, pre_softmax)
    tokens, number = logits_TE.shape
    return weights_Tk, (torch.arange(tokens * topk) % number).view(tokens, topk)


@contextmanager
def shapes_only() -> Iterator[ShapesOnly]:
    """Has the whole process train without memory inside, as an imagined rank."""
    with torch.device("cpu"):
        torch.empty(0)  # has torch note for good which functions make tensors, before others stand for them
    with ExitStack() as stack:
        for owner, name, function in _lenient():
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, function)
        yield stack.enter_context(ShapesOnly())


def _lenient() -> list[tuple[Any, str, Any]]:
    """What refuses tensors without memory, or takes another path for them: owner, name, and what stands there instead.

    A `TorchFunctionMode` would not do: it is off in a backward pass, and with it where layers are recomputed.
    """
    fused = torch_optimizer._get_fused_kernels_supported_devices

    def has_weights(group: FSDPParamGroup) -> None:
        """Nothing: they need no memory."""

    return [
        (F, "scaled_dot_product_attention", attended),
        (F, "rms_norm", normed),
        (torch, "tensor", tensor_of),
        (experts, "choose", evenly_chosen),
        (torch_optimizer, "_get_fused_kernels_supported_devices", lambda: [*fused(), META.type]),
        (FSDPParamGroup, "_validate_no_meta_params", has_weights),
    ]
