"""Megatron-VLM's three converters, as `neva convert`.

Source: github.com/mil-tokyo/Megatron-VLM, scripts/convert.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from neva.errors import ConfigError
from neva.launchers.command import PRINT_ONLY_FLAG, NevaCommand, OneSentenceParser
from neva.launchers.sources import CONVERTED, nemo_of

VOCABULARY_MULTIPLE = 128
LAYOUT = "a .nemo fits every layout"
NO_CONTAINER = "neva runs in the environment that it was started in"
SAVERS = ("llava_hf", "llava3_hf", "llava3_hf_siglip")
LOADERS = ("mcore_llava", "mcore_llava_siglip")


def build_command(arguments: Sequence[str]) -> NevaCommand:
    """Returns the `neva convert` that `build_llava_jp.py` stands for.

    Raises:
        ConfigError: a model that is no folder here, or a projector that neva has not.
    """
    parser = _parser("build_llava_jp.py", "A LLaVA in Hugging Face layout from a text model and a tower.")
    parser.add_argument("--save-dir", required=True, help="folder to write")
    parser.add_argument(
        "--text-model", default="llm-jp/llm-jp-3-13b-instruct", help="folder of the text model"
    )
    parser.add_argument(
        "--vision-model", default="google/siglip-so400m-patch14-384", help="folder of the tower"
    )
    parser.add_argument("--vocab-size-padding", action="store_true", help="vocabulary to a multiple of 128")
    parser.add_argument(
        "--expand-projector", action="store_true", help="refused: transformers' LLaVA has none"
    )
    parsed = parser.parse_args(list(arguments))
    problems = [
        f"{flag} is {model!r}, expected a folder here, since neva fetches no models: hf download {model} --local-dir "
        f"checkpoints/{Path(model).name}, then name that folder"
        for flag, model in (("--text-model", parsed.text_model), ("--vision-model", parsed.vision_model))
        if not Path(model).is_dir()
    ]
    if parsed.expand_projector:
        problems.append(
            "--expand-projector is refused: transformers has no LLaVA with a wider projector; leave it out"
        )
    if problems:
        raise ConfigError("\n".join(problems))
    words = [
        parsed.text_model,
        parsed.save_dir,
        "--vision_encoder_path",
        parsed.vision_model,
        "--precision",
        "bf16",
        "--conv_template",
        "japanese",
    ]
    words += ["--pad_vocab_to", str(VOCABULARY_MULTIPLE)] if parsed.vocab_size_padding else []
    differences = ["the output layer is the text model's own (there random)"]
    if parsed.vocab_size_padding:
        differences.append("a vocabulary that is a multiple of 128 already stays (there 128 rows more)")
    return NevaCommand("convert", words, differences=differences)


def to_megatron_command(arguments: Sequence[str]) -> NevaCommand:
    """Returns the `neva convert` that `convert_hf_to_megatron.py` stands for."""
    parser = _parser(
        "convert_hf_to_megatron.py", "A Hugging Face LLaVA to what training starts from, a .nemo."
    )
    parser.add_argument("--hf-dir", required=True, help="folder of build_llava_jp.py")
    parser.add_argument("--megatron-dir", required=True, help=f"folder that gets {CONVERTED}")
    parser.add_argument("--bind", default="", help="no effect: " + NO_CONTAINER)
    _add_layout(parser)
    parsed = parser.parse_args(list(arguments))
    words = [parsed.hf_dir, str(Path(parsed.megatron_dir) / CONVERTED)]
    return NevaCommand("convert", words, effectless=_effectless(arguments))


def to_hf_command(arguments: Sequence[str]) -> NevaCommand:
    """Returns the `neva convert` that `convert_megatron_to_hf.py` stands for.

    Raises:
        ConfigError: no `.nemo`, or several, in the folder of the run.
    """
    parser = _parser("convert_megatron_to_hf.py", "What training wrote to a Hugging Face LLaVA.")
    parser.add_argument("--megatron-dir", required=True, help="run folder, or a .nemo")
    parser.add_argument("--hf-dir", required=True, help="folder to write")
    parser.add_argument("--tokenizer-dir", default="", help="no effect: the .nemo holds its tokenizer")
    parser.add_argument(
        "--saver", choices=SAVERS, default=SAVERS[0], help="no effect: the .nemo says what it holds"
    )
    parser.add_argument(
        "--loader", choices=LOADERS, default=LOADERS[0], help="no effect: the .nemo says what it holds"
    )
    parser.add_argument("--gpu-id", default="", help="no effect: conversion runs on the CPU")
    _add_layout(parser)
    parsed = parser.parse_args(list(arguments))
    nemo = nemo_of(
        "--megatron-dir", parsed.megatron_dir, "name the run folder or the .nemo that training wrote"
    )
    return NevaCommand("convert", [str(nemo), parsed.hf_dir], effectless=_effectless(arguments))


def _parser(program: str, description: str) -> argparse.ArgumentParser:
    parser = OneSentenceParser(prog=program, description=description, allow_abbrev=False)
    parser.add_argument(PRINT_ONLY_FLAG, action="store_true", help="of neva: print the command and stop")
    return parser


def _add_layout(parser: argparse.ArgumentParser) -> None:
    for flag in ("--tp", "--pp"):
        parser.add_argument(flag, type=int, default=1, help="no effect: " + LAYOUT)
    parser.add_argument("--sif-path", default="", help="no effect: " + NO_CONTAINER)


def _effectless(arguments: Sequence[str]) -> dict[str, str]:
    reasons = {
        "--tp": LAYOUT,
        "--pp": LAYOUT,
        "--sif-path": NO_CONTAINER,
        "--bind": NO_CONTAINER,
        "--gpu-id": "conversion runs on the CPU",
        "--saver": "the .nemo says what it holds",
        "--loader": "the .nemo says what it holds",
        "--tokenizer-dir": "the .nemo holds its tokenizer",
    }
    given = {word.partition("=")[0] for word in arguments}
    return {flag: why for flag, why in reasons.items() if flag in given}
