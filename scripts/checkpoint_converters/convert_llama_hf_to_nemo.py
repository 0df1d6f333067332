"""Hugging Face language model -> .nemo, by the flags of NeMo's script: the same as `neva convert HF_DIR X.nemo`."""

from __future__ import annotations

import argparse
import sys

from neva.commands.convert import main
from neva.precision import PRECISIONS


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--input_name_or_path", required=True, help="Hugging Face folder of the language model"
    )
    parser.add_argument("--output_path", required=True, help="the .nemo file to write")
    parser.add_argument("--precision", choices=PRECISIONS, help="dtype of the weights; default: as they are")
    parser.add_argument("--hparams_file", help="accepted for old command lines; sizes come from config.json")
    parser.add_argument("--force", action="store_true", help="replace an existing file")
    return parser.parse_args()


if __name__ == "__main__":
    flags = parse()
    if flags.hparams_file:
        print("not needed: --hparams_file; sizes come from config.json", file=sys.stderr)
    arguments = [flags.input_name_or_path, flags.output_path]
    arguments += ["--precision", flags.precision] if flags.precision else []
    sys.exit(main(arguments + (["--force"] if flags.force else [])))
