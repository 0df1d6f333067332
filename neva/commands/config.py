"""`neva config`: a YAML of NeVA in neva's form, or two configurations compared."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from neva.commands.options import verb_parser

SUMMARY = "migrate a NeVA YAML, or compare two configurations"
REFUSED = 1
DIFFERENT = 1
EXAMPLES = """\
examples:
  neva config migrate old_conf/llava_7b_pretrain.yaml > my_conf/mine.yaml
  neva train -cd my_conf -cn mine --dry-run
  neva config diff llava_7b_pretrain nemo_experiments/llava_7b_pretrain/resolved.yaml
"""


def main(arguments: Sequence[str]) -> int:
    """Prints a recipe or a table. Returns the exit code."""
    options = parse(arguments)
    return _migrate(options) if options.action == "migrate" else _diff(options)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Returns the flags of `neva config`."""
    parser = verb_parser("config", SUMMARY, EXAMPLES)
    actions = parser.add_subparsers(dest="action", required=True)
    migrating = actions.add_parser(
        "migrate", help="print a complete YAML of NeVA as a recipe with a defaults list"
    )
    migrating.add_argument("yaml", type=Path, help="the old YAML file")
    comparing = actions.add_parser(
        "diff", help="print the keys in which two resolved trees differ (exit status 1)"
    )
    for name in ("first", "second"):
        comparing.add_argument(name, help="name of a recipe, or a YAML file")
    return parser.parse_args(list(arguments))


def _migrate(options: argparse.Namespace) -> int:
    from neva.config.migrate import migrate

    recipe, refused = migrate(options.yaml)
    sys.stdout.write(recipe)
    sys.stderr.writelines(f"neva: {problem}\n" for problem in refused)
    return REFUSED if refused else 0


def _diff(options: argparse.Namespace) -> int:
    from neva.config.difference import differences, resolved

    rows = differences(resolved(options.first), resolved(options.second))
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(2)]
    sys.stdout.writelines(
        f"{key:<{widths[0]}}  {first:<{widths[1]}}  {second}\n" for key, first, second in rows
    )
    return DIFFERENT if rows else 0
