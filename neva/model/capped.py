"""Attention whose scores have a soft cap (Gemma 2), written out: SDPA has none, and FlashAttention's is not torch's.

A chunk of queries at a time, whose scores are computed anew in the backward pass: what is kept are queries, keys and
values, as with SDPA, and what is needed for a moment are the scores of one chunk.

Dimensions: S query positions, C those of a chunk, K key positions, B micro batch, H heads, G query groups, Q queries
of a group, D head size.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from neva.families.configs import CAPPED_CHUNK


def capped_attention(
    query_SBHD: Tensor,
    key_KBGD: Tensor,
    value_KBGD: Tensor,
    window: int | None,
    scale: float | None,
    cap: float,
) -> Tensor:
    """Attends with queries that stand at the last of the keys.

    Args:
        query_SBHD, key_KBGD, value_KBGD: of whole heads.
        window: keys that a query sees, its own included; None: all up to its own.
        scale: of the scores; None: one over the root of D.
        cap: scores s become `cap * tanh(s / cap)`.

    Returns:
        [S, B, H*D].
    """
    scale = query_SBHD.size(-1) ** -0.5 if scale is None else scale
    first = len(key_KBGD) - len(query_SBHD)
    attended = []
    for start in range(0, len(query_SBHD), CAPPED_CHUNK):
        query = query_SBHD[start : start + CAPPED_CHUNK]
        end = first + start + len(query)
        begin = 0 if window is None else max(0, first + start + 1 - window)
        attended.append(
            checkpoint(
                _chunk,
                query,
                key_KBGD[begin:end],
                value_KBGD[begin:end],
                window,
                scale,
                cap,
                use_reentrant=False,
                preserve_rng_state=False,
            )
        )
    return torch.cat(attended)


def _chunk(query: Tensor, key: Tensor, value: Tensor, window: int | None, scale: float, cap: float) -> Tensor:
    """Returns the attention [C, B, H*D] of queries that stand at the last of the keys."""
    at_C1 = torch.arange(len(key) - len(query), len(key), device=key.device)[:, None]
    distance_CK = at_C1 - torch.arange(len(key), device=key.device)
    is_hidden_CK = distance_CK < 0
    if window is not None:
        is_hidden_CK |= distance_CK >= window
    groups = key.size(2)
    query_BGQCD = query.permute(1, 2, 0, 3).unflatten(1, (groups, -1))
    key_BGKD, value_BGKD = key.permute(1, 2, 0, 3), value.permute(1, 2, 0, 3)
    mask_CK = torch.zeros_like(is_hidden_CK, dtype=query.dtype).masked_fill_(is_hidden_CK, -torch.inf)
    attended = attend_capped(query_BGQCD, key_BGKD, value_BGKD, mask_CK, scale, cap)
    return attended.permute(3, 0, 1, 2, 4).flatten(2)


def attend_capped(
    query_BGQCD: Tensor,
    key_BGKD: Tensor,
    value_BGKD: Tensor,
    mask: Tensor | None,
    scale: float,
    cap: float,
) -> Tensor:
    """Returns the attention [B, G, Q, C, D]; `mask` is added to the scores [B, G, Q, C, K]."""
    scores = query_BGQCD @ key_BGKD[:, :, None].transpose(-1, -2) * scale
    scores = cap * torch.tanh(scores / cap)
    if mask is not None:
        scores = scores + mask
    exact = torch.promote_types(scores.dtype, torch.float32)  # as transformers does
    shares = scores.softmax(-1, dtype=exact).to(query_BGQCD.dtype)
    return shares @ value_BGKD[:, :, None]
