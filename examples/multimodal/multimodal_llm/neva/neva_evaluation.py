"""Answers to a file of prompts: `neva infer` at the path that NeVA's users know."""

import sys

from neva.cli import main

if __name__ == "__main__":
    sys.exit(main(["infer", *sys.argv[1:]]))
