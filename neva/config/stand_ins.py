"""Sizes that a recipe holds for the time in which the checkpoint is not there: they give way to it when it is."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from omegaconf import DictConfig, OmegaConf

from neva.config.derive import tower_sizes
from neva.config.derive_language import language_sizes
from neva.config.self_contained import select

TOWER = "model.mm_cfg.vision_encoder"
SECOND = "model.mm_cfg.second_vision_encoder"
LANGUAGE = "model.mm_cfg.llm"


def release(tree: DictConfig, given: Collection[str]) -> None:
    """Sets the sizes of tower and language model to null where the checkpoint says them and the user does not.

    Args:
        tree: a composed training tree; one for inference has no such sizes.
        given: dotted keys that the user wrote: they are compared with the checkpoint, and an error where they differ.
    """
    if "model" not in tree:
        return
    for part in (TOWER, SECOND):
        tower, wanted = (select(tree, f"{part}.{key}") for key in ("from_pretrained", "model_type"))
        if isinstance(tower, str):
            _release(tree, part, tower_sizes(tower, wanted if isinstance(wanted, str) else None), given)
    language = select(tree, f"{LANGUAGE}.from_pretrained")
    if isinstance(language, str):
        backend = select(tree, "model.language_backend")
        sizes = language_sizes(language, backend if isinstance(backend, str) else None)
        _release(tree, "model", sizes, given)


def _release(tree: DictConfig, section: str, sizes: Iterable[str], given: Collection[str]) -> None:
    for key in sizes:
        if f"{section}.{key}" not in given:
            OmegaConf.update(tree, f"{section}.{key}", None, force_add=True)
