"""What can be added to neva without changing it: a registry for each kind of part, and where its members are found."""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
from collections.abc import Iterable, Iterator
from typing import Any, Generic, TypeVar

from neva.errors import ConfigError

Member = TypeVar("Member")


class Registry(Generic[Member]):
    """Members of one kind by name, in the order in which they were registered.

    Those of neva register themselves when their modules are imported, which happens when the registry is first asked;
    a user's own come from the packages that `plugins` names.

    Args:
        kind: what a member is, for messages.
        package: where neva's own members lie: its modules, or `config` modules of its subpackages.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self._package = package
        self._members: dict[str, Member] = {}
        self._is_complete = False

    def register(self, name: str, member: Member) -> Member:
        """Adds a member.

        Raises:
            ConfigError: the name is taken by another one.
        """
        if self._members.setdefault(name, member) is not member:
            raise ConfigError(
                f"there is a {self.kind} called {name!r} already: register yours under another name"
            )
        return member

    def names(self) -> tuple[str, ...]:
        """Returns the names of all members."""
        self._find()
        return tuple(self._members)

    def __getitem__(self, name: str) -> Member:
        """Returns the member of that name.

        Raises:
            ConfigError: there is none; the message names those that there are.
        """
        self._find()
        if name not in self._members:
            raise ConfigError(
                f"{name!r} is not a {self.kind} that neva knows; expected one of {', '.join(self._members)}"
            )
        return self._members[name]

    def __contains__(self, name: object) -> bool:
        self._find()
        return name in self._members

    def __iter__(self) -> Iterator[Member]:
        self._find()
        return iter(list(self._members.values()))

    def _find(self) -> None:
        if self._is_complete:
            return
        self._is_complete = True
        package = importlib.import_module(self._package)
        for module in sorted(pkgutil.iter_modules(package.__path__), key=lambda module: module.name):
            importlib.import_module(f"{self._package}.{module.name}{'.config' if module.ispkg else ''}")


LANGUAGE_FAMILIES: Registry[Any] = Registry("language model family", "neva.families")
"""`neva.families.language.LanguageFamily` by Hugging Face `model_type`."""

VISION_FAMILIES: Registry[Any] = Registry("vision tower family", "neva.families")
"""`neva.families.vision.VisionFamily` by Hugging Face `model_type`."""

CONNECTORS: Registry[Any] = Registry("connector", "neva.model.connectors")
"""`neva.families.connector.Connector` by the name that `model.mm_cfg.mm_mlp_adapter_type` gives, or its pattern."""

TEMPLATES: Registry[Any] = Registry("conversation template", "neva.templates")
"""`neva.templates.template.Template` by the name that `model.data.conv_template` gives."""

SAMPLERS: Registry[Any] = Registry("sampler", "neva.data.samplers")
"""Order of an epoch by the name that `model.data.dataloader_type` gives."""

SOURCES: Registry[Any] = Registry("data source", "neva.data.sources")
"""`neva.data.sources.source.Source` by name; the first that accepts `model.data.data_path` reads it."""

METRICS: Registry[Any] = Registry("metric", "neva.metrics")
"""`neva.metrics.metric.Metric` by the name that `neva evaluate --metric` gives."""

KITS: Registry[Any] = Registry("kit for evaluation", "neva.evaluation.kits")
"""`neva.evaluation.kits.kit.Kit` by the name that `neva evaluate --kit` gives."""


def load_plugins(packages: Iterable[str]) -> None:
    """Imports a user's packages, which register what they add; the current folder is searched too.

    Raises:
        ConfigError: a package that does not exist.
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    for name in packages:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not name.startswith(error.name):
                raise
            raise ConfigError(
                f"plugins: no package {name} in the current folder or among the installed ones: install it, or put its "
                "folder on PYTHONPATH"
            ) from error
