"""What `train` and `infer` have in common: a recipe is loaded and checked, then reported on or run."""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Callable

from omegaconf import DictConfig

from neva.commands.scratch import scratch
from neva.config.keys.training import Training
from neva.config.load import load
from neva.config.paths import path_problems
from neva.config.reference import common_keys, recipe_summaries
from neva.config.schema import check_purpose
from neva.distributed import launch
from neva.distributed.launch_environment import settle

NOT_READY = 1


def run_recipe(options: argparse.Namespace, purpose: type, start: Callable[[DictConfig], object]) -> int:
    """Loads the recipe that the flags name and hands it to `start`, or to the dry run.

    Returns:
        Exit code: 0 done, 1 something that the run needs is missing.

    Raises:
        ConfigError: the recipe is wrong, or not one for `purpose`.
    """
    cfg = _loaded(options, purpose)
    if cfg.dry_run or options.dry_run:
        from neva.commands.dry_run import dry_run

        return dry_run(cfg, options.output)
    settle(launch.identify(cfg.trainer.devices, cfg.trainer.num_nodes))
    problems = path_problems(cfg)
    for problem in problems:
        sys.stderr.write(f"neva: {problem}\n")
    if problems:
        return NOT_READY
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    quiet_imports()
    with scratch():
        start(cfg)
    return 0


def training_recipe(options: argparse.Namespace, *overrides: str) -> DictConfig:
    """Returns the resolved recipe that the flags name, with `overrides` behind theirs.

    Raises:
        ConfigError: the recipe is wrong, or not one for training.
    """
    return _loaded(options, Training, *overrides)


def _loaded(options: argparse.Namespace, purpose: type, *overrides: str) -> DictConfig:
    cfg = load(options.config_name, [*options.overrides, *overrides], options.config_dir, announce)
    check_purpose(cfg, purpose)
    return cfg


def recipes_and_keys(is_training: bool, examples: str) -> str:
    """Returns what `--help` says behind the flags: the recipes, the most used keys, examples."""
    recipes = "\n".join(f"  {name:<28} {summary}" for name, summary in recipe_summaries(is_training))
    keys = "\n".join(f"  {path:<56} {doc}" for path, doc in common_keys(is_training))
    return f"recipes:\n{recipes}\n\nmost used keys (all of them: docs/configuration_keys.md):\n{keys}\n\n{examples}"


def announce(text: str) -> None:
    """Prints what is worth knowing of a configuration, once a node: the first process speaks for the others."""
    if launch.speaks():
        sys.stderr.write(f"neva: {text}\n")


def quiet_imports() -> None:
    """Drops remarks: on packages that neva does without, NeMo's on telemetry, torch's on new names."""
    logging.getLogger("megatron").setLevel(logging.WARNING)
    for name in ("bitsandbytes", "nv_one_logger"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for category in (UserWarning, FutureWarning):
        warnings.filterwarnings("ignore", category=category, module="megatron")
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", category=FutureWarning)
