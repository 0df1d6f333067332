"""Which parameters decay, and which learn at a rate of their own: told by name and shape, for every optimizer."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import nn

from neva.constants import ADAPTER


def is_vector(parameter: nn.Parameter) -> bool:
    """Returns whether a parameter is a norm's or a bias, which never decays."""
    return parameter.dim() == 1


def is_inside(part: str, name: str) -> bool:
    """Returns whether the parameter called `name` belongs to a part; adapters are one of their own."""
    return ADAPTER not in name and re.search(rf"(^|\.){part}\.", name) is not None


def lr_ratio(name: str, lr_ratios: Mapping[str, float]) -> float:
    """Returns the factor on the learning rate of the parameter called `name`; 1 for a part without one."""
    return next((ratio for part, ratio in lr_ratios.items() if is_inside(part, name)), 1.0)
