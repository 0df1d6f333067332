"""`neva plan`: the layouts of a recipe on a number of GPUs as tables or JSON."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence

from omegaconf import DictConfig

from neva.commands.options import recipe_parser
from neva.commands.recipe import announce
from neva.config.load import complete
from neva.config.validate import validate
from neva.errors import ConfigError
from neva.planner.candidates import Candidate, candidate_keys, set_keys
from neva.planner.cluster import Cluster, cluster_of
from neva.planner.job import LABEL_SHARE, job_of
from neva.planner.rank import fastest, rank
from neva.planner.report import GIB, as_json, print_tables

SUMMARY = "memory of every layout of a number of GPUs, best first"
NOTHING_FITS = 1
NODE_GPUS = 8
RESERVE_GIB = 4.0
EXAMPLES = """\
examples:
  neva plan --config-name llava_7b_finetune --gpus 8 --gpu-memory 80
  neva plan --config-name llava_13b_finetune --gpus 16 --gpu-memory 80 model.micro_batch_size=4
  neva plan --config-name llava_7b_finetune --cluster nodes=4,gpus=8,memory=80,nvlink=900,ib=400
  neva plan --config-name llava_7b_pretrain --gpus 1 --gpu-memory 24 --json
"""


def main(arguments: Sequence[str]) -> int:
    """Plans and prints.

    Returns:
        0 when a layout fits, 1 when none does.

    Raises:
        ConfigError: the recipe is wrong whatever the layout.
    """
    options = parse(arguments)
    cluster = None if options.cluster is None else cluster_of(options.cluster)
    gpus, memory, node = _machines(options, cluster)
    cfg = _recipe(options)
    job = job_of(cfg, gpus, node, options.images, options.label_share)
    limit = int((memory - options.reserve) * GIB)
    ranked, times = rank(cfg, job, limit), {}
    if cluster is not None:
        timed = fastest(ranked, job, limit, cluster)
        ranked, times = [one.plan for one in timed], {one.plan.layout: one.time for one in timed}
    if options.json:
        sys.stdout.write(json.dumps(as_json(job, ranked, limit, times), indent=1) + "\n")
    else:
        print_tables(job, ranked, limit, memory, options.reserve, options.top, times)
    return 0 if ranked and ranked[0].peak <= limit else NOTHING_FITS


def _machines(options: argparse.Namespace, cluster: Cluster | None) -> tuple[int, float, int]:
    """Returns the GPUs in all, the GiB of one, and the GPUs of a node."""
    counted = options.gpus, options.gpu_memory
    if cluster is not None:
        if counted != (None, None):
            raise ConfigError(
                "--cluster says how many GPUs there are, and of what memory: leave out --gpus and --gpu-memory"
            )
        return cluster.world, cluster.memory, cluster.gpus
    if None in counted:
        raise ConfigError("the GPUs are not known: give --gpus and --gpu-memory, or --cluster")
    node = min(options.gpus, options.gpus_per_node)
    if options.gpus % node:
        raise ConfigError(
            f"--gpus {options.gpus} cannot be divided into nodes of {node}: change it or --gpus-per-node"
        )
    return options.gpus, options.gpu_memory, node


def _recipe(options: argparse.Namespace) -> DictConfig:
    """The resolved recipe, checked apart from the layout that it names: all layouts are compared."""
    cfg = complete(options.config_name, options.overrides, options.config_dir, announce)
    if "model" not in cfg:
        raise ConfigError("a recipe for inference has no layouts to plan: name one for training")
    alone = Candidate(1, 1, 1, 1, False, "none", cfg.model.activations_checkpoint_granularity)
    set_keys(cfg, candidate_keys(job_of(cfg, 1, 1, options.images, options.label_share), alone))
    validate(cfg, 1)
    return cfg


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Returns the flags of `neva plan`."""
    parser = recipe_parser(
        "plan",
        "Memory of every layout that a number of GPUs allows, per pipeline stage, best layout first.",
        EXAMPLES,
    )
    parser.add_argument("--gpus", type=_positive, help="GPUs in all")
    parser.add_argument("--gpu-memory", type=_gibibytes, help="of one GPU, GiB")
    parser.add_argument(
        "--cluster",
        metavar="nodes=N,gpus=N,memory=GIB,nvlink=GB/s,ib=Gbit/s",
        help="in place of these: predicts the time of a step, best first (docs/plan.md: units, tflops, efficiency)",
    )
    parser.add_argument("--gpus-per-node", type=_positive, default=NODE_GPUS, help=f"default: {NODE_GPUS}")
    parser.add_argument(
        "--reserve",
        type=_gibibytes,
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
    return parser.parse_intermixed_args(list(arguments))


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def _gibibytes(text: str) -> float:
    number = float(text)
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no number of GiB")
    return number


def _share(text: str) -> float:
    number = float(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text} does not lie between 0 and 1")
    return number
