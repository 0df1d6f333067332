"""Hydra multirun: one `neva train` process for each combination of swept values."""

from __future__ import annotations

import signal
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
from neva.config.paths import run_folder
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
        ConfigError: a job's configuration is wrong, or its run folder another one's, before any job starts.
        SystemExit: Ctrl-C has ended a job, and the sweep with it.
    """
    register_resolvers()
    opened = [to_force_add(override, conf_dir) for override in overrides]
    jobs: list[list[str]] = []
    codes: list[int] = []

    def list_job(cfg: DictConfig) -> None:
        jobs.append([*HydraConfig.get().overrides.task])

    def run_job(cfg: DictConfig) -> None:
        words = [*HydraConfig.get().overrides.task]
        base = str(cfg.exp_manager.name)
        if (name := job_name(base, words, opened)) != base:
            words.append(f"{RUN_NAME}={name}")
        command = [sys.executable, "-m", "neva", "train", "-cn", recipe, "-cd", str(conf_dir)]
        codes.append(exit_code([*command, *words]))

    with tempfile.TemporaryDirectory() as scratch:
        silent = ["hydra/hydra_logging=none", f"hydra.sweep.dir={scratch}"]
        _multirun(list_job, recipe, [*opened, *silent], conf_dir)
    _check(jobs, opened, recipe, conf_dir)
    _multirun(run_job, recipe, opened, conf_dir)
    return max(codes)


def exit_code(command: Sequence[str]) -> int:
    """Runs a job and returns its exit code as shells give it, above 128 where a signal has ended it.

    Ctrl-C reaches the job too: it is waited for, since it saves.

    Raises:
        SystemExit: it was Ctrl-C.
    """
    with subprocess.Popen(command) as job:
        try:
            code = job.wait()
        except KeyboardInterrupt:
            job.wait()
            raise SystemExit(128 + signal.SIGINT) from None
    return 128 - code if code < 0 else code


def _check(jobs: Sequence[Sequence[str]], swept: Sequence[str], recipe: str, conf_dir: Path) -> None:
    """Raises ConfigError with the problems of all jobs, each once."""
    problems: dict[str, None] = {}
    folders = set[Path]()
    for words in jobs:
        try:
            cfg = load(recipe, words, conf_dir)
            check_purpose(cfg, Training)
            if not cfg.dry_run:
                launch.identify(cfg.trainer.devices, cfg.trainer.num_nodes)
            cfg.exp_manager.name = job_name(cfg.exp_manager.name, words, swept)
            if (folder := run_folder(cfg)) in folders:
                raise ConfigError(
                    f"two jobs of the sweep would have the run folder {folder}, and the second go on with the first: "
                    "leave out exp_manager.explicit_log_dir, or sweep values that folder names tell apart"
                )
            folders.add(folder)
        except ConfigError as error:
            problems |= dict.fromkeys(str(error).splitlines())
    if problems:
        raise ConfigError("\n".join(problems))


def job_name(base: str, words: Sequence[str], swept: Sequence[str]) -> str:
    """Returns `base` with the last name and the value of each swept key: `quickstart_pretrain-lr_0.001`.

    A swept name of the run is `base` itself.
    """
    parser = OverridesParser.create()
    keys = [
        override.key_or_group
        for override in parser.parse_overrides(list(swept))
        if override.is_sweep_override() and override.key_or_group != RUN_NAME
    ]
    if not keys:
        return base
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
