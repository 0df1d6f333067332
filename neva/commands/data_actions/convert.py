"""`neva data convert`: records and images from one form into another."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from neva.commands.options import verb_parser
from neva.errors import ConfigError

SUMMARY = "records and images into webdataset shards (with energon's metadata), or into .json"
EXAMPLES = """\
examples:
  neva data convert mine.json shards --image-folder images
  neva data convert shards mine.jsonl
"""
LARGEST_MB = 1 << 20


def main(arguments: Sequence[str]) -> int:
    """Writes the target and says what is in it. Returns 0; UserError when it cannot be written."""
    options = parse(arguments)
    convert(options)
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Returns the flags of `neva data convert`."""
    parser = verb_parser("data convert", SUMMARY, EXAMPLES)
    parser.add_argument("source", help="whatever model.data.data_path reads")
    parser.add_argument("target", type=Path, help="a .json or .jsonl file, or a folder for shards")
    parser.add_argument(
        "--image-folder", help="folder or .tar of the images; not needed where the source has them"
    )
    parser.add_argument(
        "--form",
        choices=("crude", "vqa"),
        default="crude",
        help="of samples: whole records, or one image, question and answer as energon's VQASample",
    )
    parser.add_argument("--samples-per-shard", type=int, default=10_000)
    parser.add_argument("--prefix", default="shard", help="of the shards' names")
    parser.add_argument(
        "--split", default="1,0,0", help="shares of the shards for energon's train, val and test"
    )
    parser.add_argument("--force", action="store_true", help="replace the target")
    return parser.parse_args(list(arguments))


def convert(options: argparse.Namespace) -> None:
    """Writes the target that the flags name."""
    from tqdm import tqdm

    from neva.data.convert import ShardSettings, write_json, write_shards
    from neva.data.sources.media_folder import MediaFolder
    from neva.data.sources.source import open_source
    from neva.formats.atomic_write import check_target

    check_target(options.target, options.force)
    split = split_of(options.split)
    if options.samples_per_shard < 1:
        raise ConfigError(f"--samples-per-shard {options.samples_per_shard}: expected 1 or more")
    records = open_source(options.source)
    folder = MediaFolder(options.image_folder, LARGEST_MB << 20, "--image-folder")
    with tqdm(total=len(records), unit="record", desc="convert", disable=None) as bar:
        if options.target.suffix in (".json", ".jsonl"):
            write_json(records, folder, options.target, options.force, bar.update)
            written = ""
        else:
            settings = ShardSettings(options.samples_per_shard, options.prefix, options.form == "vqa", split)
            count = write_shards(records, folder, options.target, settings, options.force, bar.update)
            written = f" in {count:,} shards"
    sys.stdout.write(f"{options.target}: {len(records):,} records{written}\n")


def split_of(text: str) -> tuple[float, float, float]:
    """Returns three shares from `9,1,0`; ConfigError for another form."""
    try:
        train, val, test = (float(share) for share in text.split(","))
    except ValueError:
        train = val = test = -1.0
    if min(train, val, test) < 0 or train == 0:
        raise ConfigError(f"--split {text}: expected three numbers, such as 9,1,0, the first above 0")
    return train, val, test
