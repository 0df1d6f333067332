"""`neva data index`: makes the index of a data set ahead of a run, and says what is in it."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from neva.commands.options import verb_parser

SUMMARY = "make the index that runs open, and say what is in it"
EXAMPLES = """\
examples:
  neva data index mine.json
  neva data index "shards/{000..099}.tar" other.jsonl
"""


def main(arguments: Sequence[str]) -> int:
    """Prints a table of the sources. Returns 0; UserError when one cannot be read."""
    options = parse(arguments)
    for source in options.sources:
        _report(source)
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Returns the flags of `neva data index`."""
    parser = verb_parser("data index", SUMMARY, EXAMPLES)
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="whatever model.data.data_path reads")
    return parser.parse_args(list(arguments))


def _report(path: str) -> None:
    from neva.data.index import BROKEN, IMAGES, Indexed
    from neva.data.sources.source import open_source
    from neva.errors import DataError

    start = time.monotonic()
    records = open_source(path)
    if not isinstance(records, Indexed):
        raise DataError(f"{path} is of a form that has no index; it is read whenever it is opened")
    index = records.record_index()
    kinds = [int((index.kinds == kind).sum()) for kind in (IMAGES, BROKEN)]
    lines = [
        f"{path}: {len(index):,} records in {time.monotonic() - start:.1f} s; {kinds[0]:,} with images, "
        f"{kinds[1]:,} malformed; {index.images.sum(dtype='int64'):,} images, {index.words.sum(dtype='int64'):,} words",
        f"  content: {index.content}",
    ]
    counts = index.dataset_counts()
    if len(counts) > 1:
        lines += [f"  dataset {name}: {count:,}" for name, count in counts.items()]
    sys.stdout.write("\n".join(lines) + "\n")
