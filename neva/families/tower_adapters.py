"""Where a vision tower has low-rank adapters, and of which shapes: names alone, for training, planning and files."""

from __future__ import annotations

from collections.abc import Iterator

from neva.constants import ADAPTER
from neva.families.adapters import factor_shapes
from neva.families.configs import VisionConfig
from neva.families.mapping import Shape
from neva.families.naming import TOWER
from neva.families.vision import vision_family

WEIGHT = ".weight"


def layer_matrices(vision: VisionConfig) -> dict[str, Shape]:
    """Returns name and shape of the matrices of a tower's layers that run; none of one whose layers are not known."""
    family = vision_family(vision.model_type)
    if family.layers is None:
        return {}
    return {
        name.removesuffix(WEIGHT): shape
        for name, shape in family.module_shapes(vision).items()
        if len(shape) == 2
        and name.startswith(f"{family.layers}.")
        and name.endswith(WEIGHT)
        and family.is_used(name, vision)
    }


def tower_sites(vision: VisionConfig) -> dict[str, Shape]:
    """Returns name and shape of the matrices with adapters."""
    if vision.lora is None:
        return {}
    return {name: shape for name, shape in layer_matrices(vision).items() if vision.lora.names(name)}


def tower_adapter_shapes(vision: VisionConfig) -> Iterator[tuple[str, Shape]]:
    """Yields native names and shapes of all factors beside a tower."""
    for matrix, shape in tower_sites(vision).items():
        assert vision.lora is not None
        for name, of_factor in factor_shapes(vision.lora, shape).items():
            yield f"{TOWER}{matrix}{ADAPTER}{name}", of_factor
