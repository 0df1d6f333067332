"""The projector: from the vision tower's width to the language model's."""

from __future__ import annotations

import re

from torch import nn


def build_projector(kind: str, vision_hidden_size: int, hidden_size: int) -> nn.Sequential:
    """Builds a projector of LLaVA's kinds (https://arxiv.org/abs/2310.03744).

    Args:
        kind: `linear`, or `mlp{N}x_gelu`: N linear layers with GELU between them.
        vision_hidden_size: width of a patch feature.
        hidden_size: width of a token embedding.

    Returns:
        A module [..., vision_hidden_size] -> [..., hidden_size]; its linear layers are the members 0, 2, 4, ….

    Raises:
        ValueError: for a kind that does not exist.
    """
    depth = num_layers(kind)
    layers: list[nn.Module] = [nn.Linear(vision_hidden_size, hidden_size)]
    for _ in range(1, depth):
        layers += [nn.GELU(), nn.Linear(hidden_size, hidden_size)]
    return nn.Sequential(*layers)


def num_layers(kind: str) -> int:
    """Returns the number of linear layers of a projector kind."""
    if kind == "linear":
        return 1
    match = re.fullmatch(r"mlp(\d+)x_gelu", kind)
    if match is None or int(match[1]) < 1:
        raise ValueError(
            f"mm_mlp_adapter_type: found {kind!r}, expected 'linear' or 'mlp<N>x_gelu' such as 'mlp2x_gelu'"
        )
    return int(match[1])
