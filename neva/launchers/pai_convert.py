"""Pai-Megatron-Patch's `hf2mcore_convertor_llava.sh`, argument by argument.

Source: github.com/alibaba/Pai-Megatron-Patch, toolkits/model_checkpoints_convertor/llava.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from neva.launchers.command import NevaCommand, print_and_run
from neva.launchers.pai_arguments import (
    CONVERT_ARGUMENTS,
    CONVERT_SCRIPT,
    OTHER_SIZES,
    SIZES,
    TRAIN_SCRIPT,
    TRUTH,
    shows_help,
)
from neva.launchers.sources import CONVERTED, nemo_of
from neva.launchers.words import Words, named

PROJECTOR = "mlp2x_gelu_h14336_nobias"
NO_EXPORT = (
    f"transformers has no LLaVA with this projector ({PROJECTOR}), so there is no export: to have one, convert "
    "and train with mlp2x_gelu and model.data.image_aspect_ratio=pad"
)


def convert_command(words: Sequence[str]) -> NevaCommand:
    """Returns the `neva convert` that 8 or 9 arguments of `hf2mcore_convertor_llava.sh` stand for.

    Raises:
        ConfigError: wrong arguments, a line each.
    """
    values = named(CONVERT_ARGUMENTS, words, len(CONVERT_ARGUMENTS) - 1, CONVERT_SCRIPT)
    read = Words(values)
    read.choice("MODEL_SIZE", SIZES, OTHER_SIZES)
    tower, target = read.path("SOURCE_CLIP_CKPT_PATH"), read.path("TARGET_CKPT_PATH")
    source = read.path("SOURCE_LLM_CKPT_PATH")
    for name in ("TP", "PP"):
        read.whole(name, 1)
    precision = read.choice("PR", {name: name for name in ("bf16", "fp16", "fp32")}, {})
    is_export = read.choice("mg2hf", TRUTH, {})
    if is_export and not values.get("HF_CKPT_PATH"):
        read.refuse("HF_CKPT_PATH", "the Hugging Face folder of the language model, which mg2hf=true needs")
    read.finish()
    flags = ["--vision_encoder_path", tower, "--precision", precision]
    command = NevaCommand("convert", [])
    command.effectless = {"TP and PP": "a .nemo and a Hugging Face folder fit every layout"}
    if is_export:
        nemo = nemo_of("SOURCE_LLM_CKPT_PATH", source, f"name the .nemo that {TRAIN_SCRIPT} wrote")
        command.words = [str(nemo), target, "--llm_path", values["HF_CKPT_PATH"], *flags]
        command.differences = ["the whole LLaVA is written, not the language model alone"]
        return command
    new = {"--adapter_type": PROJECTOR, "--select_layer": "-1", "--conv_template": "mistral"}
    command.words = [
        source,
        str(Path(target) / CONVERTED),
        *flags,
        *(word for pair in new.items() for word in pair),
    ]
    command.differences = [NO_EXPORT]
    if "HF_CKPT_PATH" in values:
        command.effectless["HF_CKPT_PATH"] = "only mg2hf=true reads it"
    return command


def main(words: Sequence[str]) -> int:
    """Runs the script with its arguments."""
    if shows_help(CONVERT_SCRIPT, CONVERT_ARGUMENTS, words):
        return 0
    return print_and_run(CONVERT_SCRIPT, words, convert_command)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
