"""The command `neva VERB …`. Nothing heavy is imported before a verb has its checked configuration."""

import argparse
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from neva import __version__
from neva.config.compose import CONF_DIR, RECIPE_ENVIRONMENT_VARIABLE, recipe_name
from neva.config.keys.inference import Inference
from neva.config.keys.model import Training
from neva.config.load import load
from neva.config.paths import path_problems
from neva.config.reference import common_keys, recipe_summaries
from neva.config.schema import check_purpose
from neva.distributed import launch
from neva.errors import ConfigError, UserError, print_problems

NOT_READY = 1
BAD_CONFIGURATION = 2


@dataclass(frozen=True)
class Verb:
    """One verb: a line of help, and `module:function` that takes the remaining arguments and returns an exit code."""

    summary: str
    function: str

    def run(self, arguments: list[str]) -> int:
        """Import the function and call it."""
        module, _, name = self.function.partition(":")
        return getattr(importlib.import_module(module), name)(arguments)


VERBS = {
    "train": Verb("pretrain or finetune a recipe, or check it with --dry-run", "neva.cli:train"),
    "infer": Verb("answer a file of prompts with a trained model", "neva.cli:infer"),
    "convert": Verb("between Hugging Face folders and .nemo files, with proof", "neva.commands.convert:main"),
    "plan": Verb("memory of every layout of a number of GPUs, best first", "neva.commands.plan:main"),
}

TRAIN_EXAMPLES = """\
examples:
  neva train --config-name llava_7b_pretrain --dry-run
  neva train --config-name llava_7b_finetune model.optim.lr=1e-5 trainer.devices=4
  neva train --config-name llava_7b_pretrain model/llm=from_checkpoint model.mm_cfg.llm.from_pretrained=my_llm
  neva train -m --config-name quickstart_pretrain model.optim.lr=1e-4,1e-3
"""

INFER_EXAMPLES = """\
examples:
  neva infer --config-name llava_7b_inference neva_model_file=my.nemo prompt_file=prompts.jsonl
  neva infer --config-name quickstart_inference inference.greedy=false inference.temperature=0.7
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb.

    Returns:
        Exit code: 0 done, 1 something that the run needs is missing or broken, 2 the command or its configuration is
        wrong.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(_help())
        return 0 if words else BAD_CONFIGURATION
    if words[0] == "--version":
        print(f"neva {__version__}")
        return 0
    verb = VERBS.get(words[0])
    if verb is None:
        print(f"neva: no verb {words[0]!r}; there are {', '.join(VERBS)}", file=sys.stderr)
        return BAD_CONFIGURATION
    try:
        return verb.run(words[1:])
    except UserError as error:
        print_problems(error)
        return error.exit_code


def train(arguments: list[str]) -> int:
    """`neva train`: check everything that can be checked at once, then train."""
    options = _options("train", arguments)
    if options.multirun:
        from neva.commands.sweep import sweep

        if options.output is not None:
            raise ConfigError("--output is one file: with --multirun each job writes into its own run folder")
        overrides = [*options.overrides, *(["dry_run=true"] if options.dry_run else [])]
        return sweep(recipe_name(options.config_name, options.config_dir), overrides, options.config_dir)
    cfg = load(options.config_name, options.overrides, options.config_dir)
    check_purpose(cfg, Training)
    return _run(cfg, options, _start_training)


def infer(arguments: list[str]) -> int:
    """`neva infer`: prompts in, answers out."""
    options = _options("infer", arguments)
    cfg = load(options.config_name, options.overrides, options.config_dir)
    check_purpose(cfg, Inference)
    return _run(cfg, options, _start_inference)


def _run(cfg: DictConfig, options: argparse.Namespace, start: Callable[[DictConfig], object]) -> int:
    if cfg.dry_run or options.dry_run:
        from neva.commands.dry_run import dry_run

        return dry_run(cfg, options.output)
    launch.identify(cfg.trainer.devices, cfg.trainer.num_nodes)
    problems = path_problems(cfg)
    for problem in problems:
        print(f"neva: {problem}", file=sys.stderr)
    if problems:
        return NOT_READY
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    _quiet_imports()
    start(cfg)
    return 0


def _quiet_imports() -> None:
    """Drop remarks: Megatron's on packages that neva does without, NeMo's on telemetry, torch's on new names."""
    logging.getLogger("megatron").setLevel(logging.WARNING)
    logging.getLogger("nv_one_logger").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=UserWarning, module="megatron")
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", category=FutureWarning)


def _start_training(cfg: DictConfig) -> None:
    # Before torch loads OpenMP: its threads otherwise spin while they wait and take the cores of the data workers.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from neva.training.run import train as start

    start(cfg)


def _start_inference(cfg: DictConfig) -> None:
    from neva.inference.jsonl import run as start

    start(cfg)


def _options(verb: str, arguments: list[str]) -> argparse.Namespace:
    is_training = verb == "train"
    parser = argparse.ArgumentParser(
        prog=f"neva {verb}",
        description=VERBS[verb].summary,
        epilog=_epilog(is_training),
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
        "-cd", "--config-dir", type=_folder, default=CONF_DIR, help="use this tree instead of conf/"
    )
    parser.add_argument("--dry-run", action="store_true", help="check, report and stop (also: +dry_run=true)")
    parser.add_argument("--output", type=Path, help="with --dry-run: where the resolved configuration goes")
    if is_training:
        parser.add_argument(
            "-m", "--multirun", action="store_true", help="sweep: key=a,b runs once with each value"
        )
    return parser.parse_intermixed_args(arguments)


def _folder(text: str) -> Path:
    folder = Path(text).resolve()
    if not folder.is_dir():
        raise argparse.ArgumentTypeError(f"no folder at {text}")
    return folder


def _epilog(is_training: bool) -> str:
    recipes = "\n".join(f"  {name:<28} {summary}" for name, summary in recipe_summaries(is_training))
    keys = "\n".join(f"  {path:<56} {doc}" for path, doc in common_keys(is_training))
    examples = TRAIN_EXAMPLES if is_training else INFER_EXAMPLES
    return f"recipes:\n{recipes}\n\nmost used keys (all of them: docs/configuration_keys.md):\n{keys}\n\n{examples}"


def _help() -> str:
    verbs = "\n".join(f"  {name:<8} {verb.summary}" for name, verb in VERBS.items())
    recipe = os.environ.get(RECIPE_ENVIRONMENT_VARIABLE)
    chosen = f"\n{RECIPE_ENVIRONMENT_VARIABLE} is {recipe}.\n" if recipe else ""
    return f"usage: neva VERB …   (neva VERB --help explains one)\n\n{verbs}\n{chosen}"
