"""What a connector is: the module that makes positions of the language model of a tower's patch features."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias

from neva.errors import CheckpointError, ConfigError
from neva.families.mapping import Rename, Shape, Table
from neva.families.naming import PROJECTOR, HFNaming
from neva.registry import CONNECTORS

if TYPE_CHECKING:
    from torch import nn


Quarters: TypeAlias = Literal["none", "optional", "needed"]


@dataclass(frozen=True)
class Connector(ABC):
    """A connector by the `kind` that `model.mm_cfg.mm_mlp_adapter_type` gives.

    A subclass is registered in `CONNECTORS` under the kind, or under a regular expression of all its kinds.
    """

    forms: ClassVar[tuple[str, ...]] = ()
    """How messages write the kinds of a regular expression."""
    has_newline: ClassVar[bool] = False
    """Whether the module gives one feature more for each tile, the newline, which `tokens_out` does not count."""
    quarters: ClassVar[Quarters] = "none"
    """Whether the module takes the map that the quarters of an image make together (`use_image_tile`)."""
    has_thumbnail: ClassVar[bool] = False
    """Whether it takes, in front of that map, the features of the image at half size."""

    needs_square: ClassVar[bool] = False
    """Whether the module needs the features of a square image, row by row, and nothing else among them."""

    kind: str

    @abstractmethod
    def build(self, vision_hidden_size: int, hidden_size: int) -> nn.Module:
        """Builds the module [N images, tokens in, vision_hidden_size] -> [N images, tokens out, hidden_size]."""

    @abstractmethod
    def parameter_shapes(self, vision_hidden_size: int, hidden_size: int) -> dict[str, Shape]:
        """Returns names and shapes of the parameters, in the order of the module."""

    def tokens_out(self, tokens_in: int) -> int:
        """Returns the positions that one image takes, of whose map of patch features there are `tokens_in`."""
        return tokens_in

    def flops(self, vision_hidden_size: int, hidden_size: int, tokens_in: int) -> tuple[float, float]:
        """Returns the operations of a forward pass over one image, counted as in `neva.planner.flops`.

        Returns:
            Those of matrices that read the tower's features, and those of all behind them.
        """
        shapes = [*self.parameter_shapes(vision_hidden_size, hidden_size).values()]
        sizes = [math.prod(shape) for shape in shapes if len(shape) > 1]
        is_first = sum(len(shape) > 1 for shape in shapes[:1])  # a trained norm in front reads them instead
        per_token = sum(sizes[:is_first]), sum(sizes[is_first:])
        return 2.0 * self.tokens_out(tokens_in) * per_token[0], 2.0 * self.tokens_out(tokens_in) * per_token[
            1
        ]

    def saved_width(self, vision_hidden_size: int, hidden_size: int, is_trained: bool) -> int:
        """Estimates the elements that a token keeps for the backward pass: the inputs of a trained one's matrices."""
        shapes = self.parameter_shapes(vision_hidden_size, hidden_size).values()
        return sum(shape[1] for shape in shapes if len(shape) == 2) if is_trained else 0

    def stored_names(self, names: list[str], naming: HFNaming) -> dict[str, str]:
        """Returns the name of each parameter in a Hugging Face folder, without the projector's prefix.

        Raises:
            CheckpointError: the layout has names for another connector only.
        """
        if naming.connector is not None:
            raise CheckpointError(
                f"this layout holds projectors of type {naming.connector}, this one is {self.kind}; "
                "export the original layout instead"
            )
        return {name: name for name in names}

    def stored_apart(self, naming: HFNaming) -> dict[str, str]:
        """Returns the whole name of each parameter that a Hugging Face folder stores beside the projector's."""
        return {}


class NativeConnector(Connector):
    """A connector that no layout of Hugging Face folders holds."""

    def stored_names(self, names: list[str], naming: HFNaming) -> dict[str, str]:
        """See `Connector`.

        Raises:
            CheckpointError: always.
        """
        raise CheckpointError(
            f"neither layout of LLaVA has a projector of type {self.kind}: there is no export, convert to a .nemo file"
        )


def connector_named(kind: str) -> Connector:
    """Returns the connector of a kind.

    Raises:
        ConfigError: no connector has this name.
    """
    for pattern in CONNECTORS.names():
        if re.fullmatch(pattern, kind):
            return CONNECTORS[pattern](kind)
    raise ConfigError(f"mm_mlp_adapter_type: found {kind!r}, expected one such as {connector_forms()}")


def connector_pattern() -> str:
    """Returns the regular expression of all kinds."""
    # two kinds may name a group alike
    unnamed = (re.sub(r"\(\?P<\w+>", "(?:", name) for name in CONNECTORS.names())
    return rf"^({'|'.join(unnamed)})$"


def connector_forms() -> str:
    """Returns all kinds as messages write them."""
    return ", ".join(form for name in CONNECTORS.names() for form in CONNECTORS[name].forms or (name,))


def native_projector_table(kind: str, vision_hidden_size: int, hidden_size: int) -> Table:
    """Returns the table of a connector that is stored under its own names."""
    shapes = connector_named(kind).parameter_shapes(vision_hidden_size, hidden_size)
    return Table(tuple(Rename(name, PROJECTOR + name, shape) for name, shape in shapes.items()))


def projector_table(kind: str, vision_hidden_size: int, hidden_size: int, naming: HFNaming) -> Table:
    """Returns the table of a connector that is stored under the names of `naming`.

    Raises:
        CheckpointError: the layout cannot hold it.
    """
    connector = connector_named(kind)
    shapes = connector.parameter_shapes(vision_hidden_size, hidden_size)
    apart = connector.stored_apart(naming)
    within = connector.stored_names([name for name in shapes if name not in apart], naming)
    stored = {name: naming.projector + short for name, short in within.items()} | apart
    return Table(tuple(Rename(stored[name], PROJECTOR + name, shape) for name, shape in shapes.items()))
