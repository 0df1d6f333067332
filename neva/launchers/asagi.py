"""Megatron-VLM's `scripts/train/run.py`, flag by flag.

Source: github.com/mil-tokyo/Megatron-VLM, scripts/train/run.py and scripts/readme.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from neva.checkpoint.index import checkpoints
from neva.config.derive import tower_sizes
from neva.config.derive_language import language_sizes
from neva.errors import ConfigError
from neva.launchers.asagi_flags import NO_EFFECT, build_parser, refused_flags, skipped_steps
from neva.launchers.command import NevaCommand, overrides, print_and_run, require
from neva.launchers.sources import (
    count_records,
    images_of,
    language_source_of,
    nemo_of,
    recorded_sources,
    records_of,
)

SCRIPT = "run.py"
RECIPES = {1: "asagi_14b_pretrain", 2: "asagi_14b_finetune"}
GROUPS = ("model/llm=from_checkpoint", "model/vision_encoder=from_checkpoint")
BATCHES = {1: (256, 16), 2: (128, 1)}
"""Global and micro batch of a stage."""
LEARNING_RATES = {1: 1e-3, 2: 2e-5}
WARMUP_PERCENT = 3
WANDB_PROJECT = "megatron-llava"
CHECKPOINT_REMEDY = (
    "write one with scripts/convert/convert_hf_to_megatron.py, or name the run folder of stage 1"
)

DIFFERENCES = (
    "questions are the records' own (there, at stage 2, one that is drawn from a file stands in front)",
    "answers end with an end token, which is learnt (there none, and the pads behind an answer are learnt)",
    "the loss is the mean over the label tokens of the global batch (there of each micro batch)",
    "images are padded on both sides before they are resized (there right and bottom, after)",
)
CLIP_STATISTICS = "pixels are normalised by the statistics of the HF folder (there ImageNet's for CLIP)"
CLASS_TOKEN = (
    "the tower's class token is dropped, as with --no-add-class-token (there kept for CLIP without it)"
)
NOT_A_LLAVA = "it holds no config.json of a LLaVA: build one with scripts/convert/build_llava_jp.py"


def train_command(arguments: Sequence[str]) -> NevaCommand:
    """Returns the `neva train` that the flags of `run.py` stand for.

    Raises:
        ConfigError: flags that are wrong or refused, a line each.
    """
    parsed = build_parser().parse_args(list(arguments))
    if problems := refused_flags(parsed):
        raise ConfigError("\n".join(problems))
    command = NevaCommand("train", ["--config-name", RECIPES[parsed.stage]])
    command.effectless = {flag: why for flag, why in NO_EFFECT.items() if _is_given(flag, arguments)}
    devices = _devices(parsed, command)
    _network(parsed, command)
    keys: dict[str, object] = {"trainer.num_nodes": parsed.node, "trainer.devices": devices}
    keys["trainer.accelerator"] = "auto"
    name = _run_name(parsed, devices)
    keys |= _sources(parsed, command, Path(parsed.save_dir) / name)
    keys |= _guards(parsed) | _batches(parsed) | _schedule(parsed) | _layout(parsed) | _run(parsed, name)
    command.words += [*GROUPS, *overrides(keys)]
    return command


def _guards(parsed: argparse.Namespace) -> dict[str, object]:
    """Returns what watches the loss and what makes runs the same."""
    keys: dict[str, object] = {}
    if parsed.alert_spike:
        keys["trainer.loss_spike_ratio"] = 1 + parsed.spike_thr
    if parsed.deterministic:
        keys["trainer.deterministic"] = True
    if skipped := skipped_steps(parsed):
        keys["trainer.skip_steps"] = skipped
    return keys


def _is_given(flag: str, arguments: Sequence[str]) -> bool:
    return any(word == flag or word.startswith(f"{flag}=") for word in arguments)


def _devices(parsed: argparse.Namespace, command: NevaCommand) -> int:
    ids = [word for word in parsed.gpu_ids.split(",") if word]
    size = 1 if parsed.debug else parsed.tp * parsed.pp
    count = parsed.gpus if parsed.gpus != -1 else len(ids) or size
    if ids and len(ids) != count:
        raise ConfigError(
            f"--gpu-ids {parsed.gpu_ids} names {len(ids)} GPUs, but --gpus is {count}: make them agree"
        )
    if ids:
        command.environment["CUDA_VISIBLE_DEVICES"] = ",".join(ids)
    return count


def _network(parsed: argparse.Namespace, command: NevaCommand) -> None:
    """Has the command export what a node of several needs."""
    if parsed.interface:
        for name in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"):
            command.environment[name] = parsed.interface
    if parsed.node == 1:
        return
    if not 0 <= parsed.rank < parsed.node:
        raise ConfigError(
            f"--rank is {parsed.rank}, expected the number of this node of --node {parsed.node}, from 0"
        )
    command.environment |= {
        "NODE_RANK": str(parsed.rank),
        "MASTER_ADDR": parsed.master_addr,
        "MASTER_PORT": str(parsed.master_port),
    }


def _sources(parsed: argparse.Namespace, command: NevaCommand, run_folder: Path) -> dict[str, object]:
    """Returns data and weights, and notes what differs for this tower."""
    records = records_of("--data-path", parsed.data_path)
    folder = Path(parsed.tokenizer_load_dir)
    command.differences = list(DIFFERENCES)
    if _tower_type(folder).startswith("clip"):
        command.differences += [CLIP_STATISTICS, *([] if parsed.no_add_class_token else [CLASS_TOKEN])]
    _check_run(parsed, run_folder)
    return _data(parsed, records) | (_random(folder) if parsed.init else _trained(parsed, folder, run_folder))


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _data(parsed: argparse.Namespace, records: Path) -> dict[str, object]:
    return {
        "model.data.data_path": str(records),
        "model.data.image_folder": parsed.image_folder or _text(images_of(records)),
        "model.data.conv_template": parsed.conv_template,
        "model.data.image_aspect_ratio": "pad",
        "model.data.num_workers": parsed.num_workers,
        "model.mm_cfg.llm.freeze": parsed.freeze_lm or parsed.stage == 1,
        **({"model.image_attention": "bidirectional"} if parsed.use_fixed_attn_mask else {}),
    }


def _trained(parsed: argparse.Namespace, folder: Path, run_folder: Path) -> dict[str, object]:
    """Returns where the weights come from."""
    language, projector = _checkpoint(parsed, run_folder)
    return {
        "model.mm_cfg.llm.from_pretrained": language,
        "model.mm_cfg.vision_encoder.from_pretrained": str(folder),
        "model.mm_cfg.pretrain_mm_mlp_adapter": projector,
    }


def _random(folder: Path) -> dict[str, object]:
    """Returns the sizes of a LLaVA folder, of which no weights are read."""
    parts = ("model.mm_cfg.llm.from_pretrained", "model.mm_cfg.vision_encoder.from_pretrained")
    adapter = "model.mm_cfg.pretrain_mm_mlp_adapter"
    return {
        **dict.fromkeys((*parts, adapter), None),
        "model.tokenizer.type": str(folder),
        **{f"model.{key}": value for key, value in language_sizes(str(folder)).items()},
        **{f"model.mm_cfg.vision_encoder.{key}": value for key, value in tower_sizes(str(folder)).items()},
    }


def _check_run(parsed: argparse.Namespace, run_folder: Path) -> None:
    """Raises ConfigError unless a run folder with checkpoints is continued by --load-optim, and only such a one."""
    has_checkpoint = bool(checkpoints(run_folder / "checkpoints"))
    require(
        has_checkpoint or not parsed.load_optim,
        f"--load-optim found no checkpoint in {run_folder}/checkpoints, expected the run of this --save-dir and "
        "--name to have left one: leave it out for the first run",
    )
    require(
        parsed.load_optim or not has_checkpoint,
        f"{run_folder} holds checkpoints of an earlier run: give --load-optim to continue it, or another --name",
    )


def _checkpoint(parsed: argparse.Namespace, run_folder: Path) -> tuple[str, str]:
    """Returns where the language model and the projector come from.

    --load-optim continues the run folder; where --megatron-load-dir names that very folder, the sources are those
    that the run wrote down when it began.
    """
    if parsed.load_optim and Path(parsed.megatron_load_dir).resolve() == run_folder.resolve():
        return recorded_sources(run_folder)
    nemo = nemo_of("--megatron-load-dir", parsed.megatron_load_dir, CHECKPOINT_REMEDY)
    return language_source_of(nemo), str(nemo)


def _tower_type(folder: Path) -> str:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return str(config["vision_config"]["model_type"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"--tokenizer-load-dir is {str(folder)!r}: {NOT_A_LLAVA}") from error


def _batches(parsed: argparse.Namespace) -> dict[str, object]:
    preset_global, preset_micro = BATCHES[parsed.stage]
    global_batch, micro_batch = (
        parsed.global_batch_size or preset_global,
        parsed.micro_batch_size or preset_micro,
    )
    return {
        "model.global_batch_size": 1 if parsed.debug else global_batch,
        "model.micro_batch_size": 1 if parsed.debug else micro_batch,
        "model.encoder_seq_length": parsed.seq_length,
    }


def _schedule(parsed: argparse.Namespace) -> dict[str, object]:
    """Returns the learning rate over the steps of one epoch, or of --train-iters."""
    steps = parsed.train_iters if parsed.train_iters is not None and parsed.train_iters >= 0 else None
    if steps is None:
        batch = 1 if parsed.debug else parsed.global_batch_size or BATCHES[parsed.stage][0]
        steps = count_records(records_of("--data-path", parsed.data_path)) // batch
    if steps < 1:
        raise ConfigError(
            "the run has no step: give more records, a smaller --global-batch-size, or --train-iters"
        )
    rate = parsed.lr if parsed.lr is not None else LEARNING_RATES[parsed.stage]
    return {
        "trainer.max_epochs": -1,
        "trainer.max_steps": steps,
        "model.optim.lr": 1e-4 if parsed.debug else rate,
        "model.optim.weight_decay": 0.1,
        "model.optim.betas": [0.9, parsed.adam_beta2],
        "model.optim.sched.warmup_steps": steps * WARMUP_PERCENT // 100,
        "model.optim.sched.min_lr": 1e-8,
    }


def _layout(parsed: argparse.Namespace) -> dict[str, object]:
    return {
        "model.tensor_model_parallel_size": 1 if parsed.debug else parsed.tp,
        "model.pipeline_model_parallel_size": 1 if parsed.debug else parsed.pp,
        "model.optim.name": "distributed_fused_adam" if parsed.dist_optim else "fused_adam",
        "model.activations_checkpoint_granularity": "selective",
        "model.activations_checkpoint_method": None,
        "model.activations_checkpoint_num_layers": None,
        **({"model.fp8": True} if parsed.fp8 else {}),
    }


def _run_name(parsed: argparse.Namespace, devices: int) -> str:
    layout = "tp1-pp1" if parsed.debug else f"tp{parsed.tp}-pp{parsed.pp}"
    name = f"{parsed.name}-{layout}-gpus{devices}" if parsed.name else f"{layout}-gpus{devices}"
    return f"{name}-nodes{parsed.node}" if parsed.node > 1 else name


def _run(parsed: argparse.Namespace, name: str) -> dict[str, object]:
    keys: dict[str, object] = {
        "trainer.log_every_n_steps": parsed.log_interval,
        "exp_manager.exp_dir": parsed.save_dir,
        "exp_manager.name": name,
        "exp_manager.resume_if_exists": True,
        "exp_manager.checkpoint_callback_params.every_n_train_steps": parsed.save_interval,
    }
    if parsed.wandb:
        keys["exp_manager.create_wandb_logger"] = True
        keys["exp_manager.wandb_logger_kwargs.project"] = WANDB_PROJECT
        keys["exp_manager.wandb_logger_kwargs.name"] = name
    return keys


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `run.py`."""
    return print_and_run(SCRIPT, sys.argv[1:] if arguments is None else list(arguments), train_command)


if __name__ == "__main__":
    sys.exit(main())
