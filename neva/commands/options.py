"""The flags that several verbs have."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from neva.config.compose import CONF_DIR, RECIPE_ENVIRONMENT_VARIABLE


def verb_parser(verb: str, description: str, epilog: str | None = None) -> argparse.ArgumentParser:
    """Returns the parser of a verb, which shows description and epilog as they are written."""
    return argparse.ArgumentParser(
        prog=f"neva {verb}",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def recipe_parser(verb: str, description: str, epilog: str) -> argparse.ArgumentParser:
    """Returns a parser for a recipe, the tree that it lies in, and overrides of its keys."""
    parser = verb_parser(verb, description, epilog)
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="any key of the configuration, dotted"
    )
    parser.add_argument(
        "-cn",
        "--config-name",
        help=f"recipe; without it the environment variable {RECIPE_ENVIRONMENT_VARIABLE}",
    )
    parser.add_argument(
        "-cd",
        "--config-dir",
        "-cp",
        "--config-path",
        type=_folder,
        default=CONF_DIR,
        help="folder of your recipe: a complete YAML, or one whose defaults list names files there or in conf/",
    )
    return parser


def add_dry_run(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of a dry run."""
    parser.add_argument("--dry-run", action="store_true", help="check, report and stop (also: +dry_run=true)")
    parser.add_argument("--output", type=Path, help="with --dry-run: where the resolved configuration goes")


def add_workers(parser: argparse.ArgumentParser, what: str) -> None:
    """Adds the number of processes that do `what`."""
    parser.add_argument(
        "--workers",
        type=int,
        default=len(os.sched_getaffinity(0)),
        help=f"processes that {what}; 0: none beside this one",
    )


def _folder(text: str) -> Path:
    folder = Path(text).resolve()
    if not folder.is_dir():
        raise argparse.ArgumentTypeError(f"no folder at {text}")
    return folder
