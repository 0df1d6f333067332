"""`neva check-loss FOLDER DATA`: the loss of transformers' model beside neva's, on the same records."""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from neva.commands.options import verb_parser
from neva.errors import UserError
from neva.templates.choice import template_choices

SUMMARY = "compare the loss of transformers' model with neva's, record by record"
DESCRIPTION = """\
Computes the loss of a llava-hf or Idefics2 folder on the first records of a data set, by transformers and by neva,
in float32 on the CPU, and prints both. The exit code is 0 when no record differs by more than --tolerance.

  neva check-loss checkpoints/idefics2-8b datasets/train.json --image-folder datasets/images
"""
DIFFERENT = 1


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Returns the flags of `neva check-loss`."""
    parser = verb_parser("check-loss", DESCRIPTION)
    parser.add_argument("folder", type=Path, help="Hugging Face folder")
    parser.add_argument("data", type=Path, help="records, as model.data.data_path")
    parser.add_argument("--image-folder", type=Path, help="folder of their images")
    parser.add_argument("--count", type=int, default=4, help="the first so many records")
    parser.add_argument("--tolerance", type=float, default=1e-5, help="largest difference of a mean loss")
    parser.add_argument(
        "--conv-template", choices=template_choices(), help="default: the folder's, as far as it is known"
    )
    parser.add_argument("--all-tokens", action="store_true", help="a loss on questions too")
    return parser.parse_args(list(arguments))


def main(arguments: Sequence[str]) -> int:
    """Compares and prints. Returns 0, or 1 when a record differs or nothing can be compared."""
    options = parse(arguments)
    logging.basicConfig(format="%(message)s")
    warnings.filterwarnings("ignore", module=r"megatron\..*")
    from transformers.utils.logging import disable_progress_bar

    from neva.convert.parity.loss import rows, sample_losses

    disable_progress_bar()
    data = {"answer_loss_only": not options.all_tokens, "on_error": "fail"}
    if options.conv_template is not None:
        data["conv_template"] = options.conv_template
    try:
        losses = sample_losses(options.folder, options.data, options.image_folder, options.count, data)
    except (UserError, OSError) as error:
        sys.stderr.write(f"neva check-loss: {error}\n")
        return DIFFERENT
    sys.stdout.writelines(f"{line}\n" for line in rows(losses))
    largest = max((loss.difference for loss in losses), default=0.0)
    is_equal = largest <= options.tolerance
    word = "equal" if is_equal else "different"
    sys.stdout.write(f"{word}: {len(losses)} records, largest difference {largest:.1e}\n")
    return 0 if is_equal else DIFFERENT
