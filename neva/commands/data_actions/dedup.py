"""`neva data dedup`: near-duplicates of a data set, as a table and as a file without them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from neva.commands.options import verb_parser
from neva.errors import ConfigError

SUMMARY = "find near-duplicates, and write the records without them"
EXAMPLES = """\
examples:
  neva data dedup mine.json unique.json --table duplicates.jsonl
"""


def main(arguments: Sequence[str]) -> int:
    """Writes the records that are left, and a table. Returns 0; UserError when that cannot be done."""
    options = parse(arguments)
    _check(options)
    _dedup(options)
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Returns the flags of `neva data dedup`."""
    parser = verb_parser("data dedup", SUMMARY, EXAMPLES)
    parser.add_argument("source", help="a .json or .jsonl file")
    parser.add_argument("target", type=Path, help="the .json or .jsonl file to write")
    parser.add_argument(
        "--table", type=Path, help="write a JSON line for each duplicate: which record, and of which"
    )
    parser.add_argument("--threshold", type=float, default=0.85, help="share of common shingles (0.85)")
    parser.add_argument("--permutations", type=int, default=128, help="of MinHash; more are more exact (128)")
    parser.add_argument("--shingle", type=int, default=3, help="words that are compared together (3)")
    parser.add_argument(
        "--ignore-images", action="store_true", help="equal words with other images are duplicates too"
    )
    parser.add_argument("--force", action="store_true", help="replace the target and the table")
    return parser.parse_args(list(arguments))


def _check(options: argparse.Namespace) -> None:
    if not 0 < options.threshold <= 1:
        raise ConfigError(f"--threshold {options.threshold}: expected a share above 0, 1 at most")
    if options.permutations < 16 or options.shingle < 1:
        raise ConfigError("expected 16 --permutations or more, and a --shingle of 1 word or more")
    if options.target.suffix not in (".json", ".jsonl"):
        raise ConfigError(f"{options.target}: expected a .json or .jsonl file")


def _dedup(options: argparse.Namespace) -> None:
    from tqdm import tqdm

    from neva.data.dedup import Duplicate, Similarity, find_duplicates
    from neva.data.sources.json import JsonRecords
    from neva.data.sources.source import open_source
    from neva.formats.atomic_write import check_target, finished_target
    from neva.formats.json import json_line

    for target in filter(None, (options.target, options.table)):
        check_target(target, options.force)
    records = open_source(options.source)
    if not isinstance(records, JsonRecords):
        raise ConfigError(f"{options.source}: expected .json or .jsonl; write one with neva data convert")
    settings = Similarity(options.threshold, options.permutations, options.shingle, not options.ignore_images)
    with tqdm(total=len(records), unit="record", desc="dedup", disable=None) as bar:
        found: list[Duplicate] = []
        for duplicate in find_duplicates(records, settings):
            found += [duplicate] if duplicate else []
            bar.update()
    left_out = {duplicate.index for duplicate in found}
    with finished_target(options.target, overwrite=options.force) as new:
        records.copy(
            new, [index for index in range(len(records)) if index not in left_out], options.target.suffix
        )
    if options.table:
        with finished_target(options.table, overwrite=options.force) as new:
            new.write_text("".join(json_line(asdict(duplicate)) for duplicate in found), encoding="utf-8")
    kept = len(records) - len(found)
    sys.stdout.write(
        f"{options.target}: {kept:,} of {len(records):,} records, {len(found):,} near-duplicates left out\n"
    )
