"""Values of a tree without OmegaConf around them."""

from __future__ import annotations

from typing import Any

from omegaconf import OmegaConf


def plain(value: Any) -> Any:
    """Returns a value of a tree without OmegaConf's lists and mappings."""
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
