"""`neva train`: checks everything that can be checked at once, then trains."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from omegaconf import DictConfig

from neva.commands.options import add_dry_run, recipe_parser
from neva.commands.recipe import recipes_and_keys, run_recipe
from neva.config.compose import recipe_name
from neva.config.keys.training import Training
from neva.errors import ConfigError
from neva.quick_imports import quick_imports

SUMMARY = "pretrain or finetune a recipe, or check it with --dry-run"
EXAMPLES = """\
examples:
  neva train --config-name llava_7b_pretrain --dry-run
  neva train --config-name llava_7b_finetune model.optim.lr=1e-5 trainer.devices=4
  neva train --config-name llava_7b_pretrain model/llm=from_checkpoint model.mm_cfg.llm.from_pretrained=my_llm
  neva train --config-name llava_7b_finetune parallel=tp4_pp2 --dry-run --as-rank 1037 --world 4096
  neva train -m --config-name quickstart_pretrain model.optim.lr=1e-4,1e-3
"""


def main(arguments: Sequence[str]) -> int:
    """Trains, sweeps or reports. Returns the exit code."""
    options = parse(arguments)
    if options.as_rank is not None or options.all_ranks:
        from neva.commands.dry_run_ranks import dry_run_ranks

        return dry_run_ranks(options)
    if options.world is not None:
        raise ConfigError(
            "--world says of how many processes a rank is shown: give --as-rank or --all-ranks with it"
        )
    return _sweep(options) if options.multirun else run_recipe(options, Training, _start)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Returns the flags of `neva train`."""
    parser = recipe_parser("train", SUMMARY, recipes_and_keys(True, EXAMPLES))
    add_dry_run(parser)
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument(
        "--as-rank",
        type=int,
        metavar="N",
        help="with --dry-run: what rank N of the run holds and sends in a step",
    )
    shown.add_argument("--all-ranks", action="store_true", help="the same of all ranks that differ")
    parser.add_argument(
        "--world", type=int, metavar="N", help="with these: processes of the run, on any machine"
    )
    parser.add_argument(
        "-m", "--multirun", action="store_true", help="sweep: key=a,b runs once with each value"
    )
    return parser.parse_intermixed_args(list(arguments))


def _sweep(options: argparse.Namespace) -> int:
    from neva.commands.sweep import sweep

    if options.output is not None:
        raise ConfigError("--output is one file: with --multirun each job writes into its own run folder")
    overrides = [*options.overrides, *(["dry_run=true"] if options.dry_run else [])]
    return sweep(recipe_name(options.config_name, options.config_dir), overrides, options.config_dir)


def _start(cfg: DictConfig) -> None:
    # Before torch loads OpenMP: its threads otherwise spin while they wait and take the cores of the data workers.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    with quick_imports():
        from neva.training.run import train
    train(cfg)
