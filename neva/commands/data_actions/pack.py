"""`neva data pack`: measures all records of a recipe and packs them before a run does, and says how full it gets."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Iterator, Sequence

from omegaconf import DictConfig

from neva.commands.options import add_workers, recipe_parser
from neva.commands.recipe import training_recipe

SUMMARY = "measure and pack all records of a recipe, kept beside the data for its runs"
PACK = "model.data.packed_sequence=true"
EXAMPLES = """\
examples:
  neva data pack --config-name llava_7b_finetune model.data.packed_sequence=true model.data.packed_length=8192
"""


def main(arguments: Sequence[str]) -> int:
    """Makes lengths and packs, where they are not there yet, and prints how full packs of several lengths are.

    Returns:
        0.

    Raises:
        UserError: the recipe is wrong, the data cannot be read, or a record is broken.
    """
    options = parse(arguments)
    cfg = training_recipe(options, PACK)
    cfg.model.data.num_workers = options.workers
    logging.basicConfig(format="%(message)s")
    logging.getLogger("neva").setLevel(logging.INFO)
    sys.stdout.writelines(f"{line}\n" for line in _packed(cfg.model))
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Returns the flags of `neva data pack`."""
    parser = recipe_parser("data pack", SUMMARY, EXAMPLES)
    add_workers(parser, "tokenise")
    return parser.parse_intermixed_args(list(arguments))


def _packed(model: DictConfig) -> Iterator[str]:
    """Yields a line on the packs of the recipe, then one for each of some other lengths."""
    from neva.config.samples import row_length
    from neva.config.tower import vision_config_of
    from neva.data.build import build_dataset
    from neva.data.loader import first_epoch
    from neva.data.packing import plan_packs
    from neva.data.packs import describe, packs_of
    from neva.data.tokenizer import load_tokenizer

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # each worker tokenises on its own
    dataset = build_dataset(model, vision_config_of(model), load_tokenizer(model.tokenizer))
    plan, lengths, _ = packs_of(model, first_epoch(model, model.seed, dataset), dataset)
    yield f"{model.data.data_path}: {describe(plan, lengths, row_length(model))}"
    for times in (1, 2, 4, 8):
        length = times * model.encoder_seq_length
        if length != row_length(model):
            other = plan_packs(plan.samples, lengths, length)
            yield f"with model.data.packed_length={length}: {describe(other, lengths, length)}"
