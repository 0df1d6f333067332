"""Pai-Megatron-Patch's `convert_llava_pretrain_to_wds.py`: LLaVA-Pretrain as shards for energon.

Source: github.com/alibaba/Pai-Megatron-Patch, toolkits/multimodal_data_preprocessing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from neva.launchers.command import NevaCommand, print_and_run, require
from neva.launchers.pai_arguments import shows_help
from neva.launchers.sources import LLAVA_PRETRAIN, images_of

SCRIPT = "convert_llava_pretrain_to_wds.py"


def shards_command(words: Sequence[str]) -> NevaCommand:
    """Returns the `neva data convert` that `convert_llava_pretrain_to_wds.py DIR` stands for, energon's questions too.

    Raises:
        ConfigError: wrong arguments, or no LLaVA-Pretrain there.
    """
    force = [word for word in words if word == "--force"]
    folders = [word for word in words if word != "--force"]
    require(len(folders) == 1, f"{SCRIPT}: found {len(folders)} arguments, expected LLaVA-Pretrain's folder")
    records = Path(folders[0]) / LLAVA_PRETRAIN
    require(records.is_file(), f"{SCRIPT}: no file at {records}")
    form = ["--form", "vqa", "--prefix", "pretrain", "--split", "9,1,0"]
    flags = ["--image-folder", str(images_of(records)), *form, *force]
    return NevaCommand("data", ["convert", str(records), str(records.parent / "wds"), *flags])


def main(words: Sequence[str]) -> int:
    """Runs the script with its arguments."""
    if shows_help(SCRIPT, ["DIR"], words):
        return 0
    return print_and_run(SCRIPT, words, shards_command)
