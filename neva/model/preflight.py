"""Parameters of the model that a run will build, counted without memory, and the positions of an image."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from omegaconf import DictConfig

from neva.config.language import language_config_of
from neva.config.media import media_rules_of
from neva.config.parts import trained_parts
from neva.config.tower import vision_config_of
from neva.constants import ADAPTERS
from neva.findings import Findings


@dataclass(frozen=True)
class PartSize:
    """Parameters of one part, and how many of them train."""

    name: str
    total: int
    trained: int


def part_sizes(model_cfg: DictConfig) -> list[PartSize]:
    """Counts the parameters of each part on the meta device. Megatron's groups must exist."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Megatron's, about optional packages that neva does not use
        from neva.model.build import count_parameters, meta_model, set_trainable

        vision, language = vision_config_of(model_cfg), language_config_of(model_cfg)
        model = meta_model(vision, language, model_cfg.mm_cfg.mm_mlp_adapter_type)
    set_trainable(model, trained_parts(model_cfg))
    return [PartSize(name, *counts) for name, counts in count_parameters(model).items()]


def find_share(sizes: Sequence[PartSize], found: Findings) -> None:
    """Adds which share of the parameters trains, where that is small by intention: beside adapters."""
    total, trained = sum(size.total for size in sizes), sum(size.trained for size in sizes)
    if any(size.name == ADAPTERS for size in sizes):
        found.add("trained", f"{trained:,} of {total:,} parameters ({trained / total:.2%})")


def find_machine(model_cfg: DictConfig, found: Findings) -> None:
    """Adds what this machine lacks for compiled layers and products in 8 bits, where they are asked for."""
    from neva.model.compiled import compiler_problem
    from neva.model.float8 import float8_problem

    problems = {compiler_problem: model_cfg.torch_compile, float8_problem: model_cfg.fp8}
    found.problems += [
        problem for of, is_asked in problems.items() if is_asked and (problem := of()) is not None
    ]


def find_image(model_cfg: DictConfig, found: Findings) -> None:
    """Adds how many positions of a sequence an image takes."""
    vision = vision_config_of(model_cfg)
    rules = media_rules_of(model_cfg, vision)
    largest = rules.largest_image
    positions = f"{largest.tokens} positions"
    if rules.tiling.cuts:
        positions = f"up to {largest.tokens:,} positions as {largest.tiles} tiles"
    if rules.tiling.keeps_shape:
        pictures = "one picture of its" if largest.tiles == 1 else f"{largest.tiles} pictures of their"
        positions = f"up to {largest.tokens:,} positions as {pictures} own shape"
    interpolated = (
        "" if vision.side == vision.image_size else f", positions of {vision.image_size} px interpolated"
    )
    found.add(
        "image",
        f"{positions} ({rules.tile_size} px{', in quarters' * vision.image_tiles}, patches of {vision.patch_size} px"
        f"{interpolated}) "
        f"of at most {model_cfg.encoder_seq_length:,} in a sequence",
    )
