"""`neva infer`: prompts in, answers out."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from omegaconf import DictConfig

from neva.commands.options import add_dry_run, recipe_parser
from neva.commands.recipe import recipes_and_keys, run_recipe
from neva.config.keys.inference import Inference
from neva.quick_imports import quick_imports

SUMMARY = "answer a file of prompts with a trained model"
EXAMPLES = """\
examples:
  neva infer --config-name llava_7b_inference neva_model_file=my.nemo prompt_file=prompts.jsonl
  neva infer --config-name quickstart_inference inference.greedy=false inference.temperature=0.7
"""


def main(arguments: Sequence[str]) -> int:
    """Answers or reports. Returns the exit code."""
    return run_recipe(parse(arguments), Inference, _start)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Returns the flags of `neva infer`."""
    parser = recipe_parser("infer", SUMMARY, recipes_and_keys(False, EXAMPLES))
    add_dry_run(parser)
    return parser.parse_intermixed_args(list(arguments))


def _start(cfg: DictConfig) -> None:
    with quick_imports():
        from neva.inference.jsonl import run
    run(cfg)
