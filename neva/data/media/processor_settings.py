"""Settings of an image processor: what would take unbounded memory or give no pixels is refused with its key."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from neva.errors import DataError
from neva.formats.json import shown

LARGEST_SIDE = 8192
"""Pixels; the towers that there are take up to some hundred."""

BILINEAR = int(Image.Resampling.BILINEAR)
"""What processors that keep shapes resize with where their settings do not say."""

SIDES = ("size", "crop_size")
COLOURS = ("image_mean", "image_std")
SWITCHES = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb", "do_pad")


def check_settings(settings: Mapping[str, Any], where: str | Path) -> None:
    """Raises DataError for a setting that no image processor can have; the message names it and `where` it stands."""
    checks = {
        **dict.fromkeys(
            SIDES, (_are_sides, f"a number of pixels from 1 to {LARGEST_SIDE}, or several with names")
        ),
        **dict.fromkeys(COLOURS, (_are_colours, "three finite numbers")),
        **dict.fromkeys(SWITCHES, (lambda value: isinstance(value, bool), "true or false")),
        "resample": (
            lambda value: value in list(Image.Resampling) and type(value) is int,
            "a number of Pillow's, 0 to 5",
        ),
        "rescale_factor": (lambda value: _is_finite(value) and value > 0, "a number above 0"),
        "image_processor_type": (lambda value: isinstance(value, str), "the name of a class"),
    }
    for key, (is_right, expected) in checks.items():
        value = settings.get(key)
        if value is not None and not is_right(value):
            raise DataError(f"{where}: {key} is {shown(value)}, expected {expected}")
    std = settings.get("image_std")
    if std is not None and not all(value > 0 for value in (std if isinstance(std, list) else [std])):
        raise DataError(f"{where}: image_std is {shown(std)}, expected numbers above 0")


def scaled(settings: Mapping[str, Any], factor: float) -> dict[str, Any]:
    """Returns the settings with each length in pixels, before and after a crop, `factor` times as long."""
    sides = {
        name: {edge: round(length * factor) for edge, length in settings[name].items() if length}
        for name in SIDES
        if settings.get(name)
    }
    return {**settings, **sides}


def square_settings(settings: Mapping[str, Any], side: int) -> dict[str, Any]:
    """Returns the settings of a processor that makes squares: that one keeps shapes is the recipe's choice here.

    Its filter and colours stay; settings of processors that make squares themselves are returned as they are.
    """
    name = settings.get("image_processor_type")
    if not isinstance(name, str) or not name.startswith(("Idefics2", "Siglip2")):
        return dict(settings)
    others = (
        *("do_pad", "do_image_splitting", "patch_size", "max_num_patches"),
        *("processor_class", "image_processor_class"),
    )
    kept = {"resample": BILINEAR} | {key: value for key, value in settings.items() if key not in others}
    return {**kept, "image_processor_type": "SiglipImageProcessor", "size": {"height": side, "width": side}}


def _are_sides(value: Any) -> bool:
    sides = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else [value]
    given = [side for side in sides if side is not None]
    return bool(given) and all(type(side) is int and 1 <= side <= LARGEST_SIDE for side in given)


def _are_colours(value: Any) -> bool:
    colours = value if isinstance(value, list) else [value] * 3
    return len(colours) == 3 and all(_is_finite(colour) for colour in colours)


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e30 and math.isfinite(value)
