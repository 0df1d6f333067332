"""How many positions of a sequence a medium takes: the one place for data, planner, reports and exports."""

from __future__ import annotations

from neva.families.configs import VisionConfig
from neva.families.connector import connector_named


def tokens_per_image(vision: VisionConfig, connector: str) -> int:
    """Returns the positions of one image, whose patch features go through a connector of that kind."""
    return connector_named(connector).tokens_out(vision.num_tokens)
