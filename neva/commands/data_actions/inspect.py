"""`neva data inspect`: samples as training sees them, on the terminal or as an HTML page."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from neva.commands.options import recipe_parser
from neva.commands.recipe import training_recipe
from neva.config.layout import data_parallel_size
from neva.config.validate import world_size
from neva.errors import ConfigError

if TYPE_CHECKING:
    from neva.data.inspect import Inspected
    from neva.data.inspect_lengths import SomeLengths

SUMMARY = "show samples as training sees them: what is learnt, images, lengths, padding"
EXAMPLES = """\
examples:
  neva data inspect --config-name llava_7b_finetune --count 2
  neva data inspect --config-name llava_7b_finetune --index 0,77 --html samples.html
  neva data inspect --config-name llava_7b_finetune --plots plots
"""
SHOWN = 3


def main(arguments: Sequence[str]) -> int:
    """Prints samples, or writes them as a page.

    Returns:
        0, whatever the samples are: `neva data check` judges them.

    Raises:
        UserError: the recipe is wrong, the data cannot be read at all, or a result is there already.
    """
    options = parse(arguments)
    cfg = training_recipe(options)
    samples, lengths, shares = _look(cfg, options)
    from neva.data.inspect_text import as_text, lengths_as_text

    remarks = [*lengths_as_text(lengths, shares)]
    plots = _plots(cfg, lengths, shares) if options.html or options.plots else {}
    if options.plots is not None:
        for name, png in plots.items():
            _write(options.plots / f"{name}.png", png, options.force)
    if options.html is not None:
        from neva.data.inspect_html import page

        text = page(
            f"{cfg.model.data.data_path}, {cfg.model.data.conv_template}", samples, remarks, [*plots.items()]
        )
        _write(options.html, text.encode(), options.force)
    else:
        coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        sys.stdout.writelines(f"{line}\n" for line in [*as_text(samples, coloured), *remarks])
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Returns the flags of `neva data inspect`."""
    parser = recipe_parser("data inspect", SUMMARY, EXAMPLES)
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--index", type=_indices, help="numbers of samples in the data set, with commas")
    chosen.add_argument("--count", type=int, default=SHOWN, help="the first so many")
    parser.add_argument("--html", type=Path, help="write a page instead, which needs no other file")
    parser.add_argument("--plots", type=Path, help="write histograms of lengths and padding into this folder")
    parser.add_argument(
        "--lengths",
        type=int,
        default=2000,
        help="records, evenly spaced, that lengths and padding are taken from",
    )
    parser.add_argument("--force", action="store_true", help="replace what is there")
    return parser.parse_intermixed_args(list(arguments))


def _indices(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected numbers with commas, as 0,5") from None


def _look(
    cfg: DictConfig, options: argparse.Namespace
) -> tuple[list[Inspected], SomeLengths, dict[str, float]]:
    from neva.config.tower import vision_config_of
    from neva.data.build import build_dataset
    from neva.data.inspect import inspect_sample
    from neva.data.inspect_lengths import some_lengths, waste_by_sampler
    from neva.data.tokenizer import load_tokenizer

    model = cfg.model
    dataset = build_dataset(model, vision_config_of(model), load_tokenizer(model.tokenizer))
    indices = options.index or [*range(min(options.count, len(dataset)))]
    if wrong := [index for index in indices if not 0 <= index < len(dataset)]:
        raise ConfigError(f"--index {wrong[0]}: the data set has samples 0 to {len(dataset) - 1}")
    tower = model.mm_cfg.vision_encoder
    samples = [inspect_sample(dataset, index, tower.image_mean, tower.image_std) for index in indices]
    lengths = some_lengths(dataset, max(1, options.lengths), model.data.image_token_len)
    ranks = data_parallel_size(model, world_size(cfg.trainer))
    return samples, lengths, waste_by_sampler(model, dataset, lengths, ranks)


def _plots(cfg: DictConfig, lengths: SomeLengths, shares: dict[str, float]) -> dict[str, bytes]:
    from neva.data.inspect_plots import lengths_png, waste_png

    plots = {"lengths": lengths_png(lengths, cfg.model.encoder_seq_length)} if len(lengths.tokens) else {}
    return plots | ({"padding": waste_png(shares)} if shares else {})


def _write(path: Path, content: bytes, overwrite: bool) -> None:
    from neva.formats.atomic_write import finished_target

    with finished_target(path, overwrite) as new:
        new.write_bytes(content)
    sys.stdout.write(f"{path} is written\n")
