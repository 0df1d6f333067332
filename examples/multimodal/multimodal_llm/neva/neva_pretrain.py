"""Pretrain (stage 1): `neva train` at the path that NeVA's users know."""

import sys

from neva.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
