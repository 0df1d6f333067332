"""The flags of Megatron-VLM's `run.py`: which are read, which change nothing here, which are refused and why."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Iterator

from neva.launchers.command import PRINT_ONLY_FLAG, OneSentenceParser
from neva.templates.template import template_names

JAPANESE = "japanese"

NO_EFFECT = {
    "--save": "checkpoints are always written",
    "--save-optim": "checkpoints always hold the optimizer's state",
    "--dist-ckpt": "checkpoints always are in Megatron's distributed format",
    "--sif-path": "neva runs in the environment that it was started in",
    "--is-on-aws": "EFA is configured by its own variables",
    "--slack-uid": "an alert stands in the log and in W&B, which can pass it on to Slack",
    "--backend": "NCCL serves GPUs, gloo CPUs",
    "--rdzv-port": "the nodes meet at --master-addr and --master-port",
    "--image-token-id": "image positions have ids outside the vocabulary",
    "--pad-token-id": "pads carry no loss and are not attended to",
    "--lang": "it is a tag there and changes nothing",
    "--loss-scale": "bf16 needs no loss scale",
    "--slurm-job-id": "it is a tag there",
    "--slurm-output-name": "it is a tag there",
    "--fused-attn": "attention is scaled_dot_product_attention, which chooses its kernel",
    "--flash-attn": "attention is scaled_dot_product_attention, which chooses its kernel",
    "--no-add-class-token": "the class token is always dropped",
}
"""Flags that change no number here, with the reason."""

NEEDED = ("megatron_load_dir", "tokenizer_load_dir", "save_dir", "data_path")
_RANGE = re.compile(r"([0-9]+)-([0-9]+)")


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of every flag of `run.py`, and of the three that only exist here."""
    parser = OneSentenceParser(
        prog="run.py",
        description="Megatron-VLM's training launcher on neva; the page is docs/migrate/asagi.md.",
        allow_abbrev=False,
    )
    _add_places(parser)
    _add_sizes(parser)
    for flag in (
        "--save",
        "--wandb",
        "--save-optim",
        "--load-optim",
        "--dist-optim",
        "--dist-ckpt",
        "--freeze-lm",
        "--use-fixed-attn-mask",
        "--alert-spike",
        "--deterministic",
        "--fp8",
    ):
        parser.add_argument(flag, action="store_true", help=NO_EFFECT.get(flag))
    for flag in ("--is-on-aws", "--fused-attn", "--flash-attn", "--no-add-class-token"):
        parser.add_argument(flag, action="store_true", help=f"no effect: {NO_EFFECT[flag]}")
    parser.add_argument(
        "--init", action="store_true", help="random weights of the sizes in --tokenizer-load-dir"
    )
    parser.add_argument(
        "--debug", action="store_true", help="one GPU, batch 1, learning rate 1e-4; no debugger"
    )
    parser.add_argument(
        "--skip-train-iteration-range",
        nargs="+",
        metavar="FIRST-LAST",
        help="steps that are consumed and not learnt",
    )
    return parser


def _add_places(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--name", default="", help="name of the run; the layout is put behind it")
    add(
        "--megatron-load-dir",
        help="folder with the .nemo of convert_hf_to_megatron.py, or a run folder of stage 1",
    )
    add("--tokenizer-load-dir", help="folder of build_llava_jp.py")
    add("--save-dir", help="where run folders go")
    add("--data-path", help="LLaVA-format .json or .jsonl")
    add(
        "--image-folder",
        help="of neva: folder of the images; default: images/ beside the records, or their folder",
    )
    add(
        "--conv-template",
        default=JAPANESE,
        choices=template_names(),
        help="of neva: how a conversation becomes text",
    )
    add(PRINT_ONLY_FLAG, action="store_true", help="of neva: print the command and stop")
    add("--gpu-ids", default="", help="CUDA_VISIBLE_DEVICES")
    add("--master-addr", "-m", default="192.168.174.130", help="address of the first node")
    add("--interface", default="", help="network interface between nodes")
    add("--backend", default="nccl", choices=("nccl", "gloo"), help="no effect: " + NO_EFFECT["--backend"])
    add("--lang", default="jp", choices=("jp", "en"), help="no effect: " + NO_EFFECT["--lang"])
    for flag in ("--sif-path", "--slack-uid", "--slurm-output-name"):
        add(flag, default="", help=f"no effect: {NO_EFFECT[flag]}")


def _add_sizes(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--stage",
        type=int,
        choices=(1, 2),
        default=2,
        help="preset of batches and learning rate; 1 freezes the LM",
    )
    add("--gpus", "-g", type=_whole(1, -1), default=-1, help="GPUs of a node; -1: tp x pp")
    add("--node", type=_whole(1), default=1, help="nodes")
    add("--rank", "-r", type=_whole(0, -1), default=-1, help="number of this node")
    add("--master-port", "-p", type=_whole(1), default=9902, help="port on the first node")
    for flag in ("--tp", "--pp", "--num-workers", "--log-interval"):
        add(flag, type=_whole(0 if flag == "--num-workers" else 1), default=1)
    for flag in ("--micro-batch-size", "--global-batch-size"):
        add(flag, type=_whole(1), help="default: the stage's")
    add("--seq-length", type=_whole(1), default=1024, help="longest sequence, image positions included")
    add("--save-interval", type=_whole(1), default=2000, help="steps between two checkpoints")
    add("--non-persistent-save-interval", type=_whole(1, -1), default=-1, help="refused: use --save-interval")
    add("--train-iters", type=_whole(1, -1), help="default: one epoch")
    add("--lr", type=_rate, help="default: the stage's")
    add("--adam-beta2", type=_rate, default=0.999)
    add("--spike-thr", type=_rate, default=2.0, help="with --alert-spike: by what share the loss has grown")
    for flag in ("--rdzv-port", "--image-token-id", "--pad-token-id", "--loss-scale", "--slurm-job-id"):
        add(flag, type=int, default=-1, help=f"no effect: {NO_EFFECT[flag]}")


def refused_flags(parsed: argparse.Namespace) -> list[str]:
    """Returns a sentence for each flag that is missing, wrong or cannot be obeyed."""
    return list(_refused(parsed))


def _refused(parsed: argparse.Namespace) -> Iterator[str]:
    for name in NEEDED:
        if not getattr(parsed, name) and not (parsed.init and name == "megatron_load_dir"):
            yield f"--{name.replace('_', '-')} is missing, expected a path"
    if parsed.skip_train_iteration_range and isinstance(wrong := skipped_steps(parsed), str):
        yield wrong
    if parsed.non_persistent_save_interval != -1:
        yield "--non-persistent-save-interval is refused: neva keeps its checkpoints on disk; use --save-interval"
    if parsed.adam_beta2 >= 1:
        yield f"--adam-beta2 is {parsed.adam_beta2}, expected a number below 1"


def skipped_steps(parsed: argparse.Namespace) -> list[list[int]] | str:
    """Returns first and last of the ranges of steps to skip, joined where they touch; or what is wrong with them."""
    ranges = []
    for text in parsed.skip_train_iteration_range or ():
        match = _RANGE.fullmatch(text)
        if match is None or int(match[1]) > int(match[2]):
            return f"--skip-train-iteration-range holds {text!r}, expected FIRST-LAST such as 100-110"
        ranges.append((int(match[1]), int(match[2])))
    merged: list[list[int]] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1][1] = max(merged[-1][1], last)
        else:
            merged.append([first, last])
    return merged


def _whole(low: int, also: int | None = None) -> Callable[[str], int]:
    expected = f"a whole number from {low}" + ("" if also is None else f", or {also}")

    def read(text: str) -> int:
        if re.fullmatch(r"-?[0-9]{1,18}", text) and (int(text) >= low or int(text) == also):
            return int(text)
        raise argparse.ArgumentTypeError(f"{text!r}, expected {expected}")

    return read


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if math.isfinite(value) and value > 0:
        return value
    raise argparse.ArgumentTypeError(f"{text!r}, expected a number above 0")
