"""Adds special tokens to a sentencepiece `.model` file, with the flags of NeMo's script of this name.

python scripts/tokenizers/add_special_tokens_to_sentencepiece.py --input_file tokenizer.model \
    --output_file tokenizer_neva.model --is_userdefined --tokens "<extra_id_0>" "<extra_id_1>"
"""

from __future__ import annotations

import argparse
from pathlib import Path

from neva.errors import UserError
from neva.formats.sentencepiece import add_to_sentencepiece


def main() -> None:
    """Prints the id of each token that was added, or one sentence about what is wrong."""
    parser = argparse.ArgumentParser(description="Adds special tokens to a sentencepiece model.")
    parser.add_argument("--input_file", type=Path, required=True, help="sentencepiece .model file")
    parser.add_argument("--output_file", type=Path, required=True, help=".model file to write")
    parser.add_argument("--is_userdefined", action="store_true", help="the tokens are found in text")
    parser.add_argument("--tokens", nargs="+", required=True, help="the tokens")
    parser.add_argument("--force", action="store_true", help="replace the output file")
    flags = parser.parse_args()
    try:
        ids = add_to_sentencepiece(
            flags.input_file, flags.output_file, flags.tokens, flags.is_userdefined, flags.force
        )
    except (UserError, OSError) as error:
        raise SystemExit(f"{parser.prog}: {error}") from error
    for token, number in zip(flags.tokens, ids, strict=True):
        print(f"{token} {number}")


if __name__ == "__main__":
    main()
