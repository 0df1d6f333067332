"""`neva convert SOURCE TARGET`: its flags, without anything heavy imported before they are read."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from neva.commands.options import verb_parser
from neva.convert.options import Options
from neva.convert.targets import LAYOUTS
from neva.errors import UserError
from neva.families.values import selected_layers
from neva.formats.atomic_write import check_source, check_target
from neva.precision import PRECISIONS
from neva.quick_imports import quick_imports
from neva.registry import load_plugins

DEFAULTS = Options()
FAILED = 1
STOPPING = (signal.SIGTERM, signal.SIGHUP)
"""Of a scheduler or a closed terminal."""
SUMMARY = "between Hugging Face folders and .nemo files, with proof"
DESCRIPTION = """\
Converts between Hugging Face folders and .nemo files. What SOURCE holds and what TARGET is called decide:

  text model folder            -> x.nemo   a language model, such as mm_cfg.llm.from_pretrained takes
  x.nemo (language model)      -> folder   the same for transformers
  x.nemo (LLaVA)               -> folder   llava-hf layout, or haotian-liu/LLaVA's with --layout original
  LLaVA folder (either layout) -> x.nemo   all parts
  x.nemo (LLaVA)               -> y.nemo   all parts in one file
  x.nemo (adapters) <-> folder of peft     the adapters; with --merge: a LLaVA model that has them in it
  text model + --vision_encoder_path -> x.nemo or folder   a new LLaVA model with a fresh projector
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `neva convert`."""
    parser.add_argument("source", type=Path, help=".nemo file, extracted .nemo or Hugging Face folder")
    parser.add_argument("target", type=Path, help="name.nemo, or a folder to create")
    add_options(parser)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that say how to convert."""
    parser.add_argument("--precision", choices=PRECISIONS, help="dtype of the weights; default: as they are")
    parser.add_argument("--force", action="store_true", help="replace TARGET when it is complete")
    parser.add_argument(
        "--no-verify", action="store_true", help="write the export without its proof, and record that"
    )
    parser.add_argument("--merge", action="store_true", help="adapters go into the language model's matrices")
    parser.add_argument("--layout", choices=tuple(LAYOUTS), default=DEFAULTS.layout, help="of a LLaVA folder")
    parser.add_argument(
        "--llm_path",
        type=Path,
        help="language model that the source refers to, where it is now; of adapters of peft their LLaVA",
    )
    parser.add_argument(
        "--vision_encoder_path", type=Path, help="vision tower that the source refers to, or the one to add"
    )
    parser.add_argument(
        "--vision_tower_name", help="original layout: what mm_vision_tower shall say, such as a hub name"
    )
    parser.add_argument(
        "--input_tokenizer", type=Path, help="folder of the tokenizer; default: the source's own"
    )
    parser.add_argument(
        "--add_tokens",
        nargs="+",
        default=[],
        metavar="TOKEN",
        help="special tokens to add to a language model",
    )
    parser.add_argument("--adapter_type", default=DEFAULTS.adapter_type, help="kind of a fresh projector")
    parser.add_argument(
        "--select_layer",
        type=int,
        nargs="+",
        default=[DEFAULTS.select_layer],
        help="tower layer for a fresh projector; several are joined",
    )
    parser.add_argument(
        "--conv_template", help="conversation template of a new model, or of a folder that does not tell it"
    )
    parser.add_argument(
        "--pad_vocab_to",
        type=int,
        default=DEFAULTS.vocab_multiple,
        metavar="N",
        help="rows of a llava-hf folder: a multiple of N",
    )
    parser.add_argument("--seed", type=int, default=DEFAULTS.seed, help="of a fresh projector")
    parser.add_argument(
        "--plugins", nargs="+", default=[], metavar="NAME", help="your packages that register families"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Converts and prints what was decided. Returns 0, or 1 with a sentence on stderr when it could not."""
    parser = verb_parser("convert", DESCRIPTION)
    add_arguments(parser)
    return run(parser.parse_args(arguments))


def run(arguments: argparse.Namespace) -> int:
    """Converts as the parsed flags say."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("neva").setLevel(logging.INFO)
    try:
        load_plugins(arguments.plugins)
        check_source(arguments.source)
        check_target(arguments.target, arguments.force)
        with _exit_when_told_to_stop():
            done = _convert(arguments)
    except (UserError, OSError) as error:
        sys.stderr.write(f"neva convert: {error}\n")
        return FAILED
    sys.stdout.write(done + "\n")
    return 0


@contextmanager
def _exit_when_told_to_stop() -> Iterator[None]:
    """Turns a signal that would kill the process into an exit with its code, so that half-written files are removed."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    mine = [number for number in STOPPING if signal.getsignal(number) is signal.SIG_DFL]  # nohup ignores one
    for number in mine:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in mine:
            signal.signal(number, signal.SIG_DFL)


def _convert(arguments: argparse.Namespace) -> str:
    # Megatron warns that it runs without Transformer Engine and Apex, as neva intends.
    warnings.filterwarnings("ignore", module=r"megatron\..*")
    with quick_imports():
        from transformers.utils.logging import disable_progress_bar

        from neva.convert.convert import convert

    disable_progress_bar()
    options = Options(
        dtype=PRECISIONS[arguments.precision].dtype if arguments.precision else None,
        layout=arguments.layout,
        overwrite=arguments.force,
        verify=not arguments.no_verify,
        llm_path=arguments.llm_path,
        tower_path=arguments.vision_encoder_path,
        tower_name=arguments.vision_tower_name,
        tokenizer_path=arguments.input_tokenizer,
        adapter_type=arguments.adapter_type,
        select_layer=selected_layers(arguments.select_layer),
        conv_template=arguments.conv_template,
        seed=arguments.seed,
        add_tokens=tuple(arguments.add_tokens),
        vocab_multiple=arguments.pad_vocab_to,
        merge=arguments.merge,
    )
    return convert(arguments.source, arguments.target, options)
