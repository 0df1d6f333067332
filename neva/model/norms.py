"""The norms of a decoder, for Megatron's layer spec, and the one that a form asks for.

Dimensions: S positions, B micro batch, H heads of this rank, D head size.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel import (
    copy_to_tensor_model_parallel_region,
    reduce_from_tensor_model_parallel_region,
    set_tensor_model_parallel_attributes,
)
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
from megatron.core.utils import get_tensor_model_parallel_group_if_none
from torch import Tensor, nn

from neva.families.configs import ALL_HEADS, LAYER_NORM, RMS_NORM, RMS_NORM_PLUS_ONE, LanguageConfig


class RMSNorm(nn.RMSNorm):
    """`torch.nn.RMSNorm` that tells Megatron to sum its gradient over ranks under sequence parallel."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]


class RMSNormPlusOne(RMSNorm):
    """Gemma's, whose weight is what is added to one; in float32 or more, since 16 bits would round the sum."""

    def reset_parameters(self) -> None:
        """Starts as a norm that scales nothing."""
        nn.init.zeros_(self.weight)

    def forward(self, hidden: Tensor) -> Tensor:
        """Returns hidden states [..., D], normed."""
        exact = torch.promote_types(hidden.dtype, torch.float32)
        normed = F.rms_norm(hidden.to(exact), self.normalized_shape, 1 + self.weight.to(exact), self.eps)
        return normed.to(hidden.dtype)


class LayerNorm(nn.LayerNorm):
    """`torch.nn.LayerNorm` that tells Megatron to sum its gradients over ranks under sequence parallel."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        for parameter in self.parameters():
            parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]


class AllHeadsNorm(nn.Module):
    """OLMo 2's norm of queries or keys: the mean of squares is over all heads, those of other ranks too.

    Args:
        config: Megatron's.
        hidden_size: of one head.
        eps: added to the mean.
        heads: of all tensor-parallel ranks.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float, heads: int) -> None:
        super().__init__()
        self.group = get_tensor_model_parallel_group_if_none(None)
        self.width, self.eps = heads * hidden_size, eps
        own = self.width // self.group.size()
        self.weight = nn.Parameter(torch.ones(own, dtype=config.params_dtype))
        set_tensor_model_parallel_attributes(self.weight, is_parallel=True, dim=0, stride=1)

    def forward(self, heads_SBHD: Tensor) -> Tensor:
        """Returns queries or keys [..., H, D], normed over both."""
        exact = torch.promote_types(heads_SBHD.dtype, torch.float32)
        heads = heads_SBHD.to(exact)
        squares = heads.square().sum((-2, -1), keepdim=True)
        # every rank's result depends on every rank's squares: the gradient is summed too
        if self.group.size() > 1:
            squares = reduce_from_tensor_model_parallel_region(squares, self.group)
            squares = copy_to_tensor_model_parallel_region(squares, self.group)
        normed = heads * (squares / self.width + self.eps).rsqrt()
        return (normed * self.weight.view(heads.shape[-2:])).to(heads_SBHD.dtype)

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: dict[str, Any] | None = None
    ) -> Any:
        """Returns how the weight lies in a checkpoint of any layout."""
        return make_sharded_tensors_for_checkpoint(
            self.state_dict(prefix=""), prefix, {"weight": 0}, sharded_offsets
        )


NORMS: dict[str, type[nn.Module]] = {
    RMS_NORM: RMSNorm,
    RMS_NORM_PLUS_ONE: RMSNormPlusOne,
    LAYER_NORM: LayerNorm,
}


def norm_of_form(language: LanguageConfig) -> type[nn.Module]:
    """Returns the norm over the hidden size."""
    return NORMS[language.form.norm]


def qk_norm(language: LanguageConfig, heads: int) -> type[nn.Module] | ModuleSpec:
    """Returns the norm of queries or keys, of which all ranks together have `heads`; `IdentityOp`: there is none."""
    if not language.qk_norm:
        return IdentityOp
    if language.form.qk_norm_over == ALL_HEADS:
        return ModuleSpec(module=AllHeadsNorm, params={"heads": heads})
    return norm_of_form(language)
