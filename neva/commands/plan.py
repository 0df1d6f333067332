"""`neva plan`: the layouts of a recipe on a number of GPUs as tables or JSON."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from neva.config.compose import CONF_DIR, RECIPE_ENVIRONMENT_VARIABLE, compose
from neva.config.derive import resolve
from neva.config.schema import check
from neva.config.validate import validate
from neva.errors import ConfigError
from neva.planner.estimate import Candidate, Job, Plan, layouts, plan, sort_key
from neva.planner.job import choose, is_possible, job_of, keys
from neva.planner.report import show

GIB = 1024**3
NOTHING_FITS = 1
NODE_GPUS = 8
RESERVE_GIB = 4.0
LABEL_SHARE = 0.5
EXAMPLES = """\
examples:
  neva plan --config-name llava_7b_finetune --gpus 8 --gpu-memory 80
  neva plan --config-name llava_13b_finetune --gpus 16 --gpu-memory 80 model.micro_batch_size=4
  neva plan --config-name llava_7b_pretrain --gpus 1 --gpu-memory 24 --json
"""


def main(arguments: Sequence[str]) -> int:
    """Plans and prints.

    Returns:
        0 when a layout fits, 1 when none does.

    Raises:
        ConfigError: the recipe is wrong whatever the layout.
    """
    options = _parser().parse_intermixed_args(list(arguments))
    cfg = _recipe(options)
    node = min(options.gpus, options.gpus_per_node)
    if options.gpus % node:
        raise ConfigError(
            f"--gpus {options.gpus} cannot be divided into nodes of {node}: change it or --gpus-per-node"
        )
    job = job_of(cfg, options.gpus, node, options.images, options.label_share)
    limit = int((options.gpu_memory - options.reserve) * GIB)
    ranked = rank(cfg, job, limit)
    if options.json:
        sys.stdout.write(json.dumps(report(job, ranked, limit), indent=1) + "\n")
    else:
        show(job, ranked, limit, options.gpu_memory, options.reserve, options.top)
    return 0 if ranked and ranked[0].peak <= limit else NOTHING_FITS


def rank(cfg: DictConfig, job: Job, limit: int) -> list[Plan]:
    """Returns all layouts that training accepts, best first."""
    plans = [plan(job, layout) for layout in layouts(job) if is_possible(cfg, job, layout)]
    return sorted(plans, key=lambda found: sort_key(found, limit))


def _recipe(options: argparse.Namespace) -> DictConfig:
    """The resolved recipe, checked apart from the layout that it names: all layouts are compared."""
    composed = compose(options.config_name, options.overrides, options.config_dir)
    check(composed)
    if "model" not in composed:
        raise ConfigError("a recipe for inference has no layouts to plan: name one for training")
    cfg = resolve(composed)
    alone = Candidate(1, 1, 1, 1, False, "none", cfg.model.activations_checkpoint_granularity)
    choose(cfg, keys(job_of(cfg, 1, 1, options.images, options.label_share), alone))
    validate(cfg, 1)
    return cfg


def report(job: Job, ranked: list[Plan], limit: int) -> dict[str, Any]:
    """Returns everything that was found, sizes in bytes."""
    return {
        "gpus": job.gpus,
        "limit": limit,
        "label_share": job.label_share,
        "images_per_sample": job.images_per_sample,
        "sequence_length": job.sequence_length,
        "layouts": [
            {
                **asdict(found.layout),
                "fits": found.peak <= limit,
                "peak": found.peak,
                "micro_batches": found.micro_batches,
                "bubble": found.bubble,
                "keys": keys(job, found.layout),
                "stages": [
                    {
                        **asdict(stage),
                        "activations": stage.activations,
                        "workspace": stage.workspace,
                        "peak": stage.peak,
                    }
                    for stage in found.stages
                ],
            }
            for found in ranked
        ],
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="neva plan",
        description="Memory of every layout that a number of GPUs allows, per pipeline stage, best layout first.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="any key of the configuration, dotted"
    )
    parser.add_argument(
        "-cn",
        "--config-name",
        help=f"recipe; without it the environment variable {RECIPE_ENVIRONMENT_VARIABLE}",
    )
    parser.add_argument(
        "-cd", "--config-dir", type=Path, default=CONF_DIR, help="use this tree instead of conf/"
    )
    parser.add_argument("--gpus", type=_positive, required=True, help="GPUs in all")
    parser.add_argument("--gpu-memory", type=float, required=True, help="of one GPU, GiB")
    parser.add_argument("--gpus-per-node", type=_positive, default=NODE_GPUS, help=f"default: {NODE_GPUS}")
    parser.add_argument(
        "--reserve",
        type=float,
        default=RESERVE_GIB,
        help="GiB left to the CUDA context, NCCL and fragmentation, which are not predicted; default: "
        f"{RESERVE_GIB:g}",
    )
    parser.add_argument(
        "--label-share",
        type=_share,
        default=LABEL_SHARE,
        help=f"share of positions with a loss: logits exist only there; default: {LABEL_SHARE}",
    )
    parser.add_argument("--images", type=_positive, default=1, help="images in a sample; default: 1")
    parser.add_argument("--top", type=_positive, default=10, help="layouts in the table; default: 10")
    parser.add_argument("--json", action="store_true", help="all layouts and stages, in bytes")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def _share(text: str) -> float:
    number = float(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text} does not lie between 0 and 1")
    return number
