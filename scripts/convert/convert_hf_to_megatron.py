"""A Hugging Face LLaVA to the .nemo that training starts from, by the flags that Megatron-VLM's users type."""

import sys

from neva.launchers.asagi_convert import to_megatron_command
from neva.launchers.command import print_and_run

if __name__ == "__main__":
    sys.exit(print_and_run("convert_hf_to_megatron.py", sys.argv[1:], to_megatron_command))
