"""What the tensors of a module of transformers are called in its files."""

from __future__ import annotations

from typing import Any

from neva.errors import CheckpointError


def stored_names(module: Any, what: str) -> dict[str, str]:
    """Returns the name of each tensor in a file, as transformers writes it; messages call the module `what`.

    Raises:
        CheckpointError: transformers joins or cuts tensors on the way to a file.
    """
    from transformers.core_model_loading import revert_weight_conversion

    weights = dict(module.named_parameters())
    name_of = {id(weight): name for name, weight in weights.items()}
    written = revert_weight_conversion(module, dict(weights))
    if sorted(map(id, written.values())) != sorted(name_of):
        raise CheckpointError(
            f"transformers joins or cuts tensors of a {module.config.model_type!r} {what} on the way to a file; "
            "expected one whose tensors are stored as they are"
        )
    return {name_of[id(weight)]: name for name, weight in written.items()}
