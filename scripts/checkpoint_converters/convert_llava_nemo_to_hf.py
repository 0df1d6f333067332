"""LLaVA .nemo -> Hugging Face folder, by the flags of NeMo's script: the same as `neva convert X.nemo HF_DIR`."""

from __future__ import annotations

import argparse
import sys

from neva.commands.convert import main
from neva.errors import ConfigError
from neva.formats.nemo_header import nemo_config
from neva.precision import PRECISIONS

NOT_NEEDED = ("output_path", "hf_input_path", "vision_tower_type", "processor_type", "hf_output_tokenizer")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--input_name_or_path", required=True, help=".nemo file, or the folder of an extracted one"
    )
    parser.add_argument("--hf_output_path", required=True, help="the folder to create")
    parser.add_argument("--input_tokenizer", help="folder of the tokenizer; default: the .nemo file's own")
    parser.add_argument("--vision_encoder_path", help="folder of a tower that the .nemo file does not hold")
    parser.add_argument("--llm_path", help="folder of a language model that the .nemo file does not hold")
    parser.add_argument("--precision", choices=PRECISIONS, help="dtype of the weights; default: as they are")
    parser.add_argument("--layout", choices=("llava-hf", "original"), default="llava-hf")
    parser.add_argument("--force", action="store_true", help="replace an existing folder")
    parser.add_argument("--no-verify", action="store_true", help="skip the proof, and record that")
    parser.add_argument("--cpu-only", action="store_true", help="accepted for old command lines; always so")
    for name in NOT_NEEDED:
        parser.add_argument(f"--{name}", help="accepted for old command lines; the .nemo file says it")
    return parser.parse_args()


def check_flags(flags: argparse.Namespace) -> None:
    """Says which flags do nothing; ends when one names another tower than the .nemo file holds."""
    given = [name for name in NOT_NEEDED if getattr(flags, name)]
    if given:
        print(f"not needed: --{', --'.join(given)}; all goes to --hf_output_path", file=sys.stderr)
    try:
        recorded = nemo_config(flags.input_name_or_path) or {}
    except ConfigError:  # a file of NeMo 1, or none at all: the conversion says what is wrong
        return
    found = recorded.get("mm_cfg", {}).get("vision_encoder", {}).get("model_type")
    for name in ("processor_type", "vision_tower_type"):
        said = getattr(flags, name)
        if said in ("clip", "siglip") and found is not None and said != found:
            sys.exit(
                f"--{name} {said}, but {flags.input_name_or_path} has a {found} tower: leave the flag out"
            )


if __name__ == "__main__":
    flags = parse()
    check_flags(flags)
    arguments = [flags.input_name_or_path, flags.hf_output_path, "--layout", flags.layout]
    for name in ("input_tokenizer", "vision_encoder_path", "llm_path", "precision"):
        arguments += [f"--{name}", getattr(flags, name)] if getattr(flags, name) else []
    arguments += ["--force"] if flags.force else []
    sys.exit(main(arguments + (["--no-verify"] if flags.no_verify else [])))
