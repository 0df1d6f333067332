"""The tree of `neva train`: a model, its data, how it is trained, and where the run is kept."""

from dataclasses import dataclass
from typing import Any

from neva.config.keys.exp_manager import ExpManager
from neva.config.keys.field import ignored, key, refused, section
from neva.config.keys.model import ModelKeys
from neva.config.keys.trainer import Trainer


@dataclass
class Training:
    """A training recipe."""

    dry_run: bool = key("Check and report, train nothing.")
    plugins: list[str] = key(
        "Your packages that register families, connectors, templates, sources, samplers.", optional=True
    )
    trainer: Trainer = section()
    exp_manager: ExpManager = section()
    model: ModelKeys = section()

    name: Any = ignored("the run's name is exp_manager.name, which may be ${name}")
    restore_from_path: Any = refused(None, why="the .nemo to start from is model.restore_from_path")
