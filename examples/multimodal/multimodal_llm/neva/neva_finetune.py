"""Finetune (stage 2): `neva train` at the path that NeVA's users know; any training recipe runs."""

import sys

from neva.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
