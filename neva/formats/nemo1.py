"""`.nemo` files of NeMo 1: `model_config.yaml` and a distributed checkpoint under Megatron's names.

[model.|model.module.]decoder.layers[.L].self_attention.linear_qkv.layer_norm_weight    layers stacked, or one by one
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig
from torch import Tensor

from neva.formats.archive import ByteRange, members_of, read_range
from neva.formats.nemo_header import CONFIG_FILE, WEIGHTS_FOLDER, parse_config
from neva.formats.torch_dist import DistributedWeights

PREFIX = re.compile(r"model\.(module\.)?")
STACKED = re.compile(r"decoder\.layers\.(?!\d)(.*)")


class Nemo1Weights(Mapping[str, Tensor]):
    """The tensors of a checkpoint, without the prefix `model.` and layer by layer, each read when it is asked for."""

    def __init__(self, members: Mapping[str, ByteRange], where: str) -> None:
        self._stored = DistributedWeights(members, where)
        self._source_of: dict[str, tuple[str, int | None]] = {}
        for name, shape in self._stored.shapes.items():
            plain = PREFIX.sub("", name, count=1) if PREFIX.match(name) else name
            if stacked := STACKED.fullmatch(plain):
                for layer in range(shape[0]):
                    self._source_of[f"decoder.layers.{layer}.{stacked[1]}"] = (name, layer)
            else:
                self._source_of[plain] = (name, None)

    def __getitem__(self, name: str) -> Tensor:
        stored, layer = self._source_of[name]
        return self._stored[stored] if layer is None else self._stored.slice(stored, layer)

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns the shape of a tensor, which is not read."""
        stored, layer = self._source_of[name]
        return self._stored.shapes[stored][0 if layer is None else 1 :]

    def __iter__(self) -> Iterator[str]:
        return iter(self._source_of)

    def __len__(self) -> int:
        return len(self._source_of)


@dataclass(frozen=True)
class Nemo1File:
    """An opened file or extracted folder."""

    path: Path
    config: DictConfig
    weights: Nemo1Weights

    def holds(self, *prefixes: str) -> bool:
        """Whether a tensor's name starts with one of `prefixes`."""
        return any(name.startswith(prefixes) for name in self.weights)


def open_nemo1(source: str | Path) -> Nemo1File:
    """Opens a file or folder. The class it names is not looked at, and nothing in it is executed."""
    path = Path(source)
    members = members_of(path)
    config = parse_config(read_range(members[CONFIG_FILE]), path)
    stored = {
        name.removeprefix(WEIGHTS_FOLDER): byte_range
        for name, byte_range in members.items()
        if name.startswith(WEIGHTS_FOLDER)
    }
    return Nemo1File(path, config, Nemo1Weights(stored, str(path)))
