"""What a checkpoint holds: the saved parts of the model, the optimizer, and Lightning's own state."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from neva.checkpoint.store import LIGHTNING_STATE
from neva.distributed.backend import Backend
from neva.model.llava import NevaModel

MODEL, OPTIMIZER = "model", "optimizer"


def sharded_state(
    backend: Backend,
    models: Sequence[NevaModel],
    parts: Collection[str],
    optimizer: Any | None,
    is_loading: bool = False,
    gather_full: bool = False,
) -> dict[str, Any]:
    """Returns the sharded tensors of the saved parts of a rank's virtual stages and, if given, of the optimizer.

    With `gather_full`, rank 0 has all that a backend shards.
    """
    state: dict[str, Any] = {MODEL: backend.model_state(models, parts, gather_full)}
    if optimizer is not None:
        state[OPTIMIZER] = backend.optimizer_state(optimizer, models, is_loading, gather_full)
    # an empty dict, where a rank has nothing, would be taken for what is common to the ranks
    return {part: tensors for part, tensors in state.items() if tensors}


def load_state(
    backend: Backend,
    models: Sequence[NevaModel],
    parts: Collection[str],
    optimizer: Any | None,
    loaded: Mapping[str, Any],
) -> None:
    """Fills model and, if given, optimizer with what `store.load` returned.

    Parts that are not saved keep their weights.
    """
    backend.load_model(models, loaded[MODEL], parts)
    if optimizer is not None:
        backend.load_optimizer(optimizer, loaded.get(OPTIMIZER, {}), loaded[LIGHTNING_STATE][OPTIMIZER])
