"""The moving average of the weights in a checkpoint, and how it is read in place of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from megatron.core import dist_checkpointing

from neva.optim.kinds import AVERAGE, stored_as

_PREFIX = f"{stored_as(AVERAGE)}."


def averaged_names(folder: Path) -> frozenset[str]:
    """Returns the names of the weights of which a checkpoint holds an average; none where none was kept."""
    stored = dist_checkpointing.load_tensors_metadata(str(folder))
    return frozenset(name.removeprefix(_PREFIX) for name in stored if name.startswith(_PREFIX))


def from_average(model_state: Mapping[str, Any], averaged: Collection[str]) -> dict[str, Any]:
    """Returns what `Backend.model_state` describes, read from the average where the weight is one of `averaged`.

    The others are those that did not train.
    """
    return {
        stage: {
            name: replace(tensor, key=_PREFIX + tensor.key) if tensor.key in averaged else tensor
            for name, tensor in tensors.items()
        }
        for stage, tensors in model_state.items()
    }
