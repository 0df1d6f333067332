"""Hydra multirun: one `neva train` process for each combination of swept values."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from neva.config.compose import register_resolvers, search_path, to_force_add
from neva.config.keys.training import Training
from neva.config.load import load
from neva.config.schema import check_purpose
from neva.distributed import launch
from neva.errors import ConfigError

RUN_NAME = "exp_manager.name"

HYDRA_OVERRIDES = (
    "hydra.output_subdir=null",
    "hydra/job_logging=none",
    "hydra.sweep.dir=nemo_experiments/multirun/${now:%Y-%m-%d_%H-%M-%S}",
)
"""A job's own folder is exp_manager's; Hydra keeps only the list of jobs."""


def sweep(recipe: str, overrides: Sequence[str], conf_dir: Path) -> int:
    """Checks every job, then runs them one after another (or as Hydra's launcher plugin does).

    Each job is a process of its own, so that nothing of one leaks into the next; its run name is the recipe's with
    the swept values behind it, so that the same command resumes the same jobs.

    Returns:
        The largest exit code of the jobs.

    Raises:
        ConfigError: a job's configuration is wrong, before any job starts.
    """
    register_resolvers()
    opened = [to_force_add(override, conf_dir) for override in overrides]
    jobs: list[list[str]] = []
    codes: list[int] = []

    def list_job(cfg: DictConfig) -> None:
        jobs.append([*HydraConfig.get().overrides.task])

    def run_job(cfg: DictConfig) -> None:
        words = [*HydraConfig.get().overrides.task]
        if not any(_key(word) == RUN_NAME for word in opened):
            words.append(f"{RUN_NAME}={job_name(cfg.exp_manager.name, words, opened)}")
        command = [sys.executable, "-m", "neva", "train", "-cn", recipe, "-cd", str(conf_dir)]
        codes.append(subprocess.run([*command, *words], check=False).returncode)

    with tempfile.TemporaryDirectory() as scratch:
        silent = ["hydra/hydra_logging=none", f"hydra.sweep.dir={scratch}"]
        _multirun(list_job, recipe, [*opened, *silent], conf_dir)
    _check(jobs, recipe, conf_dir)
    _multirun(run_job, recipe, opened, conf_dir)
    return max(codes)


def _check(jobs: Sequence[Sequence[str]], recipe: str, conf_dir: Path) -> None:
    """Raises ConfigError with the problems of all jobs, each once."""
    problems: dict[str, None] = {}
    for words in jobs:
        try:
            cfg = load(recipe, words, conf_dir)
            check_purpose(cfg, Training)
            if not cfg.dry_run:
                launch.identify(cfg.trainer.devices, cfg.trainer.num_nodes)
        except ConfigError as error:
            problems |= dict.fromkeys(str(error).splitlines())
    if problems:
        raise ConfigError("\n".join(problems))


def job_name(base: str, words: Sequence[str], swept: Sequence[str]) -> str:
    """Returns `base` with the last name and the value of each swept key: `quickstart_pretrain-lr_0.001`."""
    parser = OverridesParser.create()
    keys = [
        override.key_or_group
        for override in parser.parse_overrides(list(swept))
        if override.is_sweep_override()
    ]
    values = {_key(word): word.partition("=")[2] for word in words}
    parts = [f"{key.rpartition('.')[2]}_{values[key]}" for key in keys]
    text = "-".join([base, *parts])
    return "".join(character if character.isalnum() or character in "._-+" else "_" for character in text)


def _key(override: str) -> str:
    return override.lstrip("+").partition("=")[0]


def _multirun(
    task: Callable[[DictConfig], None], recipe: str, overrides: Sequence[str], conf_dir: Path
) -> None:
    """Runs Hydra, which reads its command line from `sys.argv`."""
    arguments = sys.argv
    sys.argv = [arguments[0], "--multirun", *HYDRA_OVERRIDES, *search_path(conf_dir), *overrides]
    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir), config_name=recipe)(task)()
    finally:
        sys.argv = arguments
