"""What tells one set of weights from another: adapters fit the weights that they were trained beside, and no others."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from neva.errors import CheckpointError

BASE = "base"
"""Where the manifest of a `.nemo`, and a checkpoint's own state, say what adapters were trained beside."""

SAMPLES = 4096
"""Elements of a tensor that are looked at, evenly spread."""


class Fingerprint:
    """Of the tensors that pass through `watch`, whatever their order: names, shapes and a sample of the numbers."""

    def __init__(self) -> None:
        self._digests: dict[str, str] = {}

    def watch(self, pairs: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Yields the same pairs."""
        for name, tensor in pairs:
            flat = tensor.detach().flatten()
            sample = flat[:: -(-flat.numel() // SAMPLES) or 1].to("cpu", torch.float32).contiguous()
            content = f"{name}{list(tensor.shape)}".encode() + sample.numpy().tobytes()
            self._digests[name] = hashlib.sha256(content).hexdigest()
            yield name, tensor

    def __bool__(self) -> bool:
        """Whether anything was seen."""
        return bool(self._digests)

    def __str__(self) -> str:
        return hashlib.sha256("".join(sorted(self._digests.values())).encode()).hexdigest()


def fingerprint_of(weights: Mapping[str, Tensor]) -> str:
    """Returns the fingerprint of tensors under native names, each of which is read for it."""
    seen = Fingerprint()
    for _ in seen.watch((name, weights[name]) for name in weights):
        pass
    return str(seen)


def check_base(
    manifest: Mapping[str, Any], found: Mapping[str, str], origins: Mapping[str, Any], where: Any
) -> None:
    """Compares parts with those that a `.nemo` or a checkpoint with adapters names as their base.

    Args:
        manifest: of the `.nemo`, or the checkpoint's own state; one of before there was such a thing names none.
        found: part -> fingerprint of what was read for it.
        origins: part -> where that is.
        where: the `.nemo` or the checkpoint.

    Raises:
        CheckpointError: a part is another one.
    """
    for part, expected in (manifest.get(BASE) or {}).items():
        if part in found and found[part] != expected["fingerprint"]:
            raise CheckpointError(
                f"{origins[part]} is another {part} than {expected['path']}, beside which the adapters of {where} "
                f"were trained: its fingerprint is {found[part][:12]}, expected {expected['fingerprint'][:12]}; give "
                "that one (in training model.restore_from_path or from_pretrained, else base_model_file or --llm_path)"
            )
