"""Bytes that experts keep for the backward pass, where the router spreads tokens evenly.

A rank's experts get as many copies of tokens as it sends to others: k of each. How they are spread in truth decides
which rank gets more; with expert parallel the fullest can take a multiple.
"""

from __future__ import annotations

from neva.families.configs import ExpertsConfig
from neva.precision import FLOAT32

FLAG_BYTES = 1


def expert_bytes(
    experts: ExpertsConfig,
    tokens: int,
    hidden_size: int,
    shards: tuple[int, int],
    width: int,
    is_trained: bool,
) -> int:
    """Counts what a layer's router and experts save, without the input of the layer.

    Args:
        experts: their sizes.
        tokens: of a micro batch on the ranks that share a tensor-parallel layer.
        hidden_size: of the residual stream.
        shards: ranks that share the tokens (sequence parallel), and each matrix (tensor parallel).
        width: bytes of an element.
        is_trained: whether matrices keep their inputs.
    """
    own = tokens // shards[0]
    # the softmax of what is chosen, what each expert weighs by token, and which tokens go where
    total = own * (2 * experts.per_token + experts.number) * FLOAT32.num_bytes
    total += own * 2 * experts.number * FLAG_BYTES
    copies = tokens * experts.per_token
    total += copies * FLOAT32.num_bytes  # what the expert weighs, beside each copy
    total += gated_bytes(copies, experts.ffn_hidden_size // shards[1], width)
    # the activation before it is weighed, and the inputs of both matrices
    total += copies * experts.ffn_hidden_size // shards[1] * width
    if is_trained:
        total += copies * (hidden_size + experts.ffn_hidden_size // shards[1]) * width
    if experts.shared_ffn_hidden_size is not None:
        inner = experts.shared_ffn_hidden_size // shards[1]
        total += gated_bytes(tokens, inner, width) + own * (hidden_size + 2) * width
        total += tokens * inner * width * is_trained
    return total


def gated_bytes(rows: int, inner: int, width: int) -> int:
    """Counts gate and up, SiLU of the gate, and up plus Megatron's offset of zero."""
    return 4 * rows * inner * width
