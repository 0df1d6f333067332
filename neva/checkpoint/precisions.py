"""Float32 weights of a checkpoint, read by a run of another precision.

A run in 16 bits keeps them with its optimizer, beside those of the model, which are rounded; in float32 the model's are
all there is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.dict_utils import dict_list_map_outplace, extract_matching_values, merge

from neva.checkpoint import store
from neva.checkpoint.state import MODEL, OPTIMIZER
from neva.optim.kinds import MAIN, stored_as

_PREFIX = f"{stored_as(MAIN)}."


def read(folder: Path, state: Mapping[str, Any], has_mains: bool) -> dict[str, Any]:
    """Returns what `store.read` does, float32 weights from where the checkpoint has them. Called by every rank.

    Args:
        folder: the checkpoint.
        state: what `sharded_state` returns.
        has_mains: whether the run has float32 weights beside the model's, the same on every rank.
    """
    stored = dist_checkpointing.load_tensors_metadata(str(folder))
    if not has_mains:
        weights = dict_list_map_outplace(partial(_unrounded, stored), state[MODEL])
        return store.read(folder, {**state, MODEL: weights})
    if any(name.startswith(_PREFIX) for name in stored):
        return store.read(folder, dict(state))
    mains, others = extract_matching_values(dict(state), lambda tensor: tensor.key.startswith(_PREFIX))
    loaded = store.read(folder, others)
    # apart: in one reading a tensor has one precision
    read_mains = store.read(folder, dict_list_map_outplace(_as_the_models, mains))
    merge(loaded, {OPTIMIZER: read_mains.get(OPTIMIZER, {})})
    return loaded


def _unrounded(stored: Mapping[str, Any], tensor: Any) -> Any:
    """Returns a weight of the model as it is read: in another precision than it is stored in, from the optimizer's."""
    main = _PREFIX + tensor.key
    is_rounded = main in stored and stored[tensor.key].dtype != tensor.data.dtype
    return replace(tensor, key=main) if is_rounded else tensor


def _as_the_models(tensor: Any) -> Any:
    return replace(tensor, key=tensor.key.removeprefix(_PREFIX))
