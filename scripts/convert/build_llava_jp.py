"""A LLaVA in Hugging Face layout from a text model and a tower, by the flags that Megatron-VLM's users type."""

import sys

from neva.launchers.asagi_convert import build_command
from neva.launchers.command import print_and_run

if __name__ == "__main__":
    sys.exit(print_and_run("build_llava_jp.py", sys.argv[1:], build_command))
