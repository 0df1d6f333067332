"""Leopard's Idefics2 scripts on Pai-Megatron-Patch, flag by flag: training, and the way back to Hugging Face.

Source: github.com/Jill0001/Leopard, Pai-Megatron-Patch/examples/idefics2 and toolkits/model_checkpoints_convertor.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from neva.launchers.command import NevaCommand, OneSentenceParser, overrides, print_and_run, require

RECIPES = {
    "pretrain_idefics2_llama3.sh": "idefics2_llama3_8b_pretrain",
    "finetune_idefics2_llama3.sh": "idefics2_llama3_8b_finetune",
    "train_multiimg_idefics2.sh": "idefics2_8b_finetune",
}
EXPORT_SCRIPT = "mg2hf.sh"
CONVERSIONS: dict[str, list[str]] = {
    "idefics2/model_convertor.sh": [],
    "idefics2_llama3/model_convertor.sh": [
        "--add_tokens",
        "<fake_token_around_image>",
        "<image>",
        "<end_of_utterance>",
    ],
}
"""Script that reads a Hugging Face folder -> what `neva convert` needs besides it and the `.nemo`."""

CONVERSION_EFFECTLESS = {
    "--config_path": "the folder says its sizes",
    "--megatron-path": "megatron-core is installed",
    "--target_tensor_model_parallel_size": "a .nemo fits every layout",
    "--target_pipeline_model_parallel_size": "a .nemo fits every layout",
    "--model_name": "the folder says its language model",
    "--extra_num_vocabs": "padding of the vocabulary follows from the layout and is not stored",
    "--make_vocab_size_divisible_by": "padding of the vocabulary follows from the layout and is not stored",
}
VALUES = {
    "--image-size": ("model.data.longest_edge", int),
    "--shortest-edge": ("model.data.shortest_edge", int),
    "--max-image-num": ("model.data.max_image_num", int),
    "--train-data-path": ("model.data.data_path", str),
    "--valid-data-path": ("model.data.validation", str),
    "--image-folder": ("model.data.image_folder", str),
    "--micro-batch-size": ("model.micro_batch_size", int),
    "--global-batch-size": ("model.global_batch_size", int),
    "--lr": ("model.optim.lr", float),
    "--min-lr": ("model.optim.sched.min_lr", float),
    "--weight-decay": ("model.optim.weight_decay", float),
    "--clip-grad": ("trainer.gradient_clip_val", float),
    "--train-iters": ("trainer.max_steps", int),
    "--lr-warmup-iters": ("model.optim.sched.warmup_steps", int),
    "--seq-length": ("model.encoder_seq_length", int),
    "--seed": ("model.seed", int),
    "--save-interval": ("exp_manager.checkpoint_callback_params.every_n_train_steps", int),
    "--save": ("exp_manager.explicit_log_dir", str),
    "--load": ("model.restore_from_path", str),
    "--tensor-model-parallel-size": ("model.tensor_model_parallel_size", int),
    "--pipeline-model-parallel-size": ("model.pipeline_model_parallel_size", int),
    "--num-workers": ("model.data.num_workers", int),
}
"""Flag with a value -> key and type."""

SWITCHES: dict[str, dict[str, object]] = {
    "--do-image-splitting": {"model.data.do_image_splitting": True},
    "--freeze-llm": {"model.mm_cfg.llm.freeze": True},
    "--freeze-clip-vision-tower": {"model.mm_cfg.vision_encoder.freeze": True},
    "--freeze-perceiver": {"model.mm_cfg.mm_mlp_adapter_freeze": True},
    "--answer-loss-only": {"model.data.answer_loss_only": True},
    "--sequence-parallel": {"model.sequence_parallel": True},
    "--skip-train": {"trainer.skip_train": True},
    "--use-distributed-optimizer": {"model.optim.name": "distributed_fused_adam"},
    "--bf16": {"trainer.precision": "bf16"},
    "--fp16": {"trainer.precision": 16},
}
"""Flag without a value -> keys."""

ABSENT: dict[str, dict[str, object]] = {
    "--freeze-llm": {"model.mm_cfg.llm.freeze": False},
    "--freeze-clip-vision-tower": {"model.mm_cfg.vision_encoder.freeze": False},
    "--answer-loss-only": {"model.data.answer_loss_only": False},
}
"""What leaving a flag out says there, where a recipe says otherwise."""

EFFECTLESS = {
    "--extra-vocab-size": "padding of the vocabulary follows from the layout and is not stored",
    "--pad-vocab-size": "padding of the vocabulary follows from the layout and is not stored",
    "--max-padding-length": "a micro batch is as long as its longest sample",
    "--image-seq-len": "the perceiver's latents are model.mm_cfg.mm_mlp_adapter_type",
    "--patch-size": "it follows from the tower",
    "--patch-tokenizer-type": "the tokenizer is the language model's",
    "--sliding-window": "it follows from the language model",
    "--rotary-base": "it follows from the language model",
    "--dataset": "the form of the data is seen in --train-data-path",
}


def train_command(recipe: str, words: Sequence[str]) -> NevaCommand:
    """Returns the `neva train` that the flags of a training script stand for.

    Raises:
        ConfigError: a flag that is not known, or a value of another kind.
    """
    parser = OneSentenceParser(prog=recipe, allow_abbrev=False)
    for flag, (_, kind) in VALUES.items():
        parser.add_argument(flag, type=kind)
    for flag in SWITCHES:
        parser.add_argument(flag, action="store_true")
    for flag in EFFECTLESS:
        parser.add_argument(flag)
    given = vars(parser.parse_args(list(words)))

    def value(flag: str) -> object:
        return given[flag.removeprefix("--").replace("-", "_")]

    keys: dict[str, object] = {}
    for flag, (key, _) in VALUES.items():
        if value(flag) is not None:
            keys[key] = value(flag)
    for flag, sets in SWITCHES.items():
        if value(flag) or flag in ABSENT:
            keys |= sets if value(flag) else ABSENT[flag]
    if "trainer.max_steps" in keys:
        keys["trainer.max_epochs"] = -1
    effectless = {flag: why for flag, why in EFFECTLESS.items() if value(flag) is not None}
    return NevaCommand("train", ["--config-name", recipe, *overrides(keys)], effectless=effectless)


def export_command(words: Sequence[str]) -> NevaCommand:
    """Returns the `neva convert` of `mg2hf.sh CHECKPOINT`, which writes CHECKPOINT_hf.

    Raises:
        ConfigError: not one argument, or no `.nemo` is there.
    """
    require(
        len(words) == 1, f"found {len(words)} arguments, expected the checkpoint: {EXPORT_SCRIPT} CHECKPOINT"
    )
    path = Path(words[0])
    found = sorted(path.glob("**/*.nemo")) if path.is_dir() else [path]
    require(len(found) == 1, f"{path} holds {len(found)} .nemo files, expected one: name the file itself")
    return NevaCommand("convert", [str(found[0]), f"{path.with_suffix('')}_hf"])


def conversion_command(script: str, words: Sequence[str]) -> NevaCommand:
    """Returns the `neva convert` of a `model_convertor.sh`, by the flags of the program that it calls.

    Raises:
        ConfigError: a flag that is not known, or one of the two paths is missing.
    """
    parser = OneSentenceParser(prog=script, allow_abbrev=False)
    parser.add_argument("--load_path", required=True)
    parser.add_argument("--save_path", required=True)
    parser.add_argument("--target_params_dtype", choices=("fp32", "fp16", "bf16"))
    for flag in CONVERSION_EFFECTLESS:
        parser.add_argument(flag)
    given = vars(parser.parse_args(list(words)))
    names = {flag: flag.removeprefix("--").replace("-", "_") for flag in CONVERSION_EFFECTLESS}
    dtype = given["target_params_dtype"]
    save_path = Path(given["save_path"])
    target = save_path if save_path.suffix == ".nemo" else save_path.with_name(f"{save_path.name}.nemo")
    return NevaCommand(
        "convert",
        [given["load_path"], str(target), *CONVERSIONS[script], *(["--precision", dtype] if dtype else [])],
        effectless={
            flag: CONVERSION_EFFECTLESS[flag] for flag, name in names.items() if given[name] is not None
        },
    )


def main(arguments: Sequence[str]) -> int:
    """Runs one of the scripts: its name, then its arguments."""
    known = (*RECIPES, *CONVERSIONS, EXPORT_SCRIPT)
    require(bool(arguments) and arguments[0] in known, f"expected the name of a script: {', '.join(known)}")
    script, words = arguments[0], arguments[1:]
    if {"-h", "--help"} & set(words):
        usage = f"usage: {script} [--print-only] {' '.join(_flags(script))}"
        sys.stdout.write(f"{usage}\nThe page: docs/migrate/idefics2.md\n")
        return 0
    if script == EXPORT_SCRIPT:
        return print_and_run(script, words, export_command)
    if script in CONVERSIONS:
        return print_and_run(script, words, lambda found: conversion_command(script, found))
    return print_and_run(script, words, lambda found: train_command(RECIPES[script], found))


def _flags(script: str) -> list[str]:
    if script == EXPORT_SCRIPT:
        return ["CHECKPOINT"]
    if script in CONVERSIONS:
        return ["--load_path", "--save_path", "--target_params_dtype", *CONVERSION_EFFECTLESS]
    return [*VALUES, *SWITCHES, *EFFECTLESS]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
