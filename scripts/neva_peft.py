"""Finetune with adapters: `neva train` under the name that NeVA's users know; any training recipe runs."""

import sys

from neva.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
