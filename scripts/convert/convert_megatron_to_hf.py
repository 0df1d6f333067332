"""What training wrote to a Hugging Face LLaVA, by the flags that Megatron-VLM's users type."""

import sys

from neva.launchers.asagi_convert import to_hf_command
from neva.launchers.command import print_and_run

if __name__ == "__main__":
    sys.exit(print_and_run("convert_megatron_to_hf.py", sys.argv[1:], to_hf_command))
