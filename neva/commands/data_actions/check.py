"""`neva data check`: reads all records of a recipe as training would, and says which of them are broken or odd."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from neva.commands.options import add_workers, recipe_parser
from neva.commands.recipe import training_recipe
from neva.commands.scratch import scratch
from neva.formats.atomic_write import check_target, finished_target
from neva.formats.json import json_line

if TYPE_CHECKING:
    from neva.data.check import DataCheck, Remark
    from neva.data.dataset import ConversationDataset

SUMMARY = "check all records of a recipe: media, placeholders, labels, lengths, duplicates"
BROKEN = 1
EXAMPLES = """\
examples:
  neva data check --config-name llava_7b_finetune model.data.data_path=mine.json model.data.image_folder=images
  neva data check --config-name llava_7b_finetune --workers 16 --output remarks.jsonl
"""


def main(arguments: Sequence[str]) -> int:
    """Reads everything and prints a table.

    Returns:
        0 when every record gives a sample, 1 when some do not.

    Raises:
        UserError: the recipe is wrong, or the data cannot be read at all.
    """
    options = parse(arguments)
    cfg = training_recipe(options)
    if options.output is not None:
        check_target(options.output, options.force)
    with scratch():  # workers leave sockets in the temporary folder
        found = _check(cfg, options.workers)
    remarks = [remark for part in found for remark in part.remarks]
    if options.output is not None:
        _write(remarks, options.output)
    return BROKEN if any(remark.is_broken for remark in remarks) else 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Returns the flags of `neva data check`."""
    parser = recipe_parser("data check", SUMMARY, EXAMPLES)
    add_workers(parser, "read and decode")
    parser.add_argument(
        "--output", "--remarks", type=Path, help="write a JSON line for each broken or odd record"
    )
    parser.add_argument("--force", action="store_true", help="replace what is at --output")
    return parser.parse_intermixed_args(list(arguments))


def _check(cfg: DictConfig, num_workers: int) -> list[DataCheck]:
    """Checks what trains, then what is held out, and prints a table of each."""
    from neva.config.tower import vision_config_of
    from neva.data.build import build_dataset
    from neva.data.tokenizer import load_tokenizer
    from neva.data.validation import build_validation_dataset

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # each worker tokenises on its own
    vision, tokenizer = vision_config_of(cfg.model), load_tokenizer(cfg.model.tokenizer)
    dataset = build_dataset(cfg.model, vision, tokenizer)
    held_out = build_validation_dataset(cfg.model, vision, tokenizer)
    started = time.monotonic()
    found = [_check_part(dataset, num_workers)]
    _report(found[0], str(dataset.records.path), time.monotonic() - started)
    if held_out is not None:
        started = time.monotonic()
        found.append(_check_part(held_out, num_workers))
        found[1].add_trained(held_out, found[0], dataset)
        sys.stdout.write("\n")
        _report(found[1], f"held out of {held_out.records.path}", time.monotonic() - started)
    return found


def _check_part(dataset: ConversationDataset, num_workers: int) -> DataCheck:
    from tqdm import tqdm

    from neva.data.check import DataCheck, check_all

    found = DataCheck(len(dataset))
    with tqdm(total=len(dataset), unit="record", desc="check", disable=None) as bar:
        for chunk in check_all(dataset, num_workers):
            for index, record in chunk:
                found.add(index, record)
            bar.update(len(chunk))
    found.add_duplicates(dataset)
    return found


def _write(remarks: list[Remark], path: Path) -> None:
    with finished_target(path, overwrite=True) as new:
        new.write_text("".join(json_line(asdict(remark)) for remark in remarks), encoding="utf-8")


def _report(found: DataCheck, path: str, elapsed_s: float) -> None:
    lengths = found.num_tokens[found.num_tokens > 0]
    with_images = int((found.num_images[found.num_tokens > 0] > 0).sum())
    lines = [f"{path}: {len(found.num_tokens):,} records read in {elapsed_s:.0f} s"]
    if len(lengths):
        lines += [
            f"{len(lengths):,} samples: {with_images:,} with images, {len(lengths) - with_images:,} of text alone; "
            f"{lengths.mean():.0f} positions on average, {lengths.max():,} at most"
        ]
    by_kind: dict[str, list[Remark]] = defaultdict(list)
    for remark in found.remarks:
        by_kind[remark.kind].append(remark)
    if by_kind:
        lines += ["", f"{'what':<18}{'records':>9}  first"]
    for kind, remarks in sorted(by_kind.items(), key=lambda item: -len(item[1])):
        first = remarks[0]
        message = (
            first.message if first.is_broken else f"{first.place} (id {first.record_id!r}): {first.message}"
        )
        lines.append(f"{kind:<18}{len(remarks):>9,}  {message}")
    sys.stdout.write("\n".join(lines) + "\n")
