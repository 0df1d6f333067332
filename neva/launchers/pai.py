"""Pai-Megatron-Patch's `run_mcore_llava.sh`, argument by argument.

Source: github.com/alibaba/Pai-Megatron-Patch, examples/llava_mcore.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from neva.errors import ConfigError
from neva.launchers.command import NevaCommand, overrides, print_and_run, require
from neva.launchers.devices import gpus_here
from neva.launchers.pai_arguments import (
    CONVERT_SCRIPT,
    NO_ACTIVATION_OFFLOAD,
    OFFLOAD,
    OTHER_SIZES,
    PRECISIONS,
    RECOMPUTE,
    SIZES,
    TRAIN_ARGUMENTS,
    TRAIN_SCRIPT,
    TRUTH,
    shows_help,
)
from neva.launchers.sources import images_of, language_source_of, nemo_of, records_of
from neva.launchers.words import Words, named

RECIPE = "pai_llava_mistral_7b_pretrain"
LAYERS = 32
DIFFERENCES = (
    "there is no dropout (there 0.1 on the hidden states)",
    "samples come in an order of our own; of a .json without shards all records are trained on (there a split of them)",
)
EFFECTLESS = {
    "SEQ_LEN": "the positions of an image follow from the tower",
    "FL": "attention is scaled_dot_product_attention, which takes FlashAttention where it can",
    "VALID_DATASET_PATH": "no validation runs while training",
}


def train_command(words: Sequence[str], environment: Mapping[str, str]) -> NevaCommand:
    """Returns the `neva train` that 23 arguments of `run_mcore_llava.sh` stand for.

    Args:
        words: the arguments.
        environment: read for the nodes of dlc, for the GPUs, and for MP_AC_LAYERS.

    Raises:
        ConfigError: wrong arguments, a line each.
    """
    values = named(TRAIN_ARGUMENTS, words, len(TRAIN_ARGUMENTS), TRAIN_SCRIPT)
    read = Words(values)
    command = NevaCommand("train", ["--config-name", RECIPE], effectless=dict(EFFECTLESS))
    command.differences = list(DIFFERENCES)
    keys = _batch_and_schedule(read) | _layout(read) | _memory(read, command, environment)
    read.whole("SEQ_LEN", 1)
    read.choice("FL", TRUTH, {})
    read.path("VALID_DATASET_PATH")
    output = read.path("OUTPUT_BASEPATH")
    nodes = _nodes(read, command, environment)
    read.finish()
    records = records_of("DATASET_PATH", values["DATASET_PATH"])
    source = values["PRETRAIN_CHECKPOINT_PATH"]
    require(
        source != "none",
        "PRETRAIN_CHECKPOINT_PATH is 'none', expected the folder that hf2mcore_convertor_llava.sh wrote: the "
        "tokenizer comes from there too",
    )
    nemo = nemo_of(
        "PRETRAIN_CHECKPOINT_PATH", source, f"convert the Hugging Face folders with {CONVERT_SCRIPT}"
    )
    language = language_source_of(nemo)
    paths = {
        "model.data.data_path": str(records),
        "model.data.image_folder": None if (images := images_of(records)) is None else str(images),
        "model.mm_cfg.llm.from_pretrained": language,
        "exp_manager.exp_dir": str(Path(output) / "checkpoint"),
        "exp_manager.name": _run_name(values),
    }
    if language != str(nemo):
        paths["model.mm_cfg.pretrain_mm_mlp_adapter"] = str(nemo)
    command.words += overrides(nodes | keys | paths)
    return command


def _batch_and_schedule(read: Words) -> dict[str, object]:
    read.choice("MODEL_SIZE", SIZES, OTHER_SIZES)
    steps, warmup = read.whole("TRAIN_ITERS", 1), read.whole("LR_WARMUP_ITERS")
    if not read.problems and steps <= 2 * warmup:
        read.refuse(
            "TRAIN_ITERS", f"more than twice LR_WARMUP_ITERS={warmup}: the cosine ends LR_WARMUP_ITERS early"
        )
    return {
        "trainer.max_steps": steps,
        "trainer.precision": read.choice("PR", PRECISIONS, {}),
        **({"model.fp8": True} if read.values.get("PR") == "fp8" else {}),
        "model.micro_batch_size": read.whole("BATCH_SIZE", 1),
        "model.global_batch_size": read.whole("GLOBAL_BATCH_SIZE", 1),
        "model.encoder_seq_length": read.whole("DECODER_SEQ_LEN", 1),
        "model.optim.lr": read.decimal("LR"),
        "model.optim.sched.min_lr": read.decimal("MIN_LR", is_above_zero=False),
        "model.optim.sched.warmup_steps": warmup,
        "model.optim.sched.constant_steps": warmup,
        "exp_manager.checkpoint_callback_params.every_n_train_steps": read.whole("SAVE_INTERVAL", 1),
    }


def _layout(read: Words) -> dict[str, object]:
    return {
        "model.tensor_model_parallel_size": read.whole("TP", 1),
        "model.pipeline_model_parallel_size": read.whole("PP", 1),
        "model.context_parallel_size": read.whole("CP", 1),
    }


def _memory(read: Words, command: NevaCommand, environment: Mapping[str, str]) -> dict[str, object]:
    granularity = read.choice("AC", RECOMPUTE, NO_ACTIVATION_OFFLOAD)
    keys: dict[str, object] = {"model.activations_checkpoint_granularity": granularity}
    if read.values.get("AC") == "true":
        command.effectless["AC=true"] = "it names no mode there and recomputes nothing; sel and full do"
    if granularity == "full":
        layers = Words({"MP_AC_LAYERS": environment.get("MP_AC_LAYERS", "1")})
        unit = layers.whole("MP_AC_LAYERS", 1)
        if not layers.problems and (LAYERS // max(1, read.whole("PP", 1))) % unit:
            layers.refuse("MP_AC_LAYERS", f"a divisor of the layers of a pipeline stage ({LAYERS} / PP)")
        read.problems += layers.problems
        keys["model.activations_checkpoint_method"] = "uniform"
        keys["model.activations_checkpoint_num_layers"] = unit
    is_offloaded, is_distributed = read.choice("OPTIMIZER_OFFLOAD", OFFLOAD, {}), read.choice("DO", TRUTH, {})
    if is_offloaded and not is_distributed:
        command.effectless["DO=false"] = (
            "OPTIMIZER_OFFLOAD turns the distributed optimizer on, as it does there"
        )
    if read.values.get("OPTIMIZER_OFFLOAD") == "auto":
        command.differences.append(
            "OPTIMIZER_OFFLOAD=auto moves all of the optimizer's state, as static does"
        )
    return keys | {
        "model.optim.name": "distributed_fused_adam" if is_distributed or is_offloaded else "fused_adam",
        "model.optim.cpu_offload": is_offloaded,
    }


def _nodes(read: Words, command: NevaCommand, environment: Mapping[str, str]) -> dict[str, object]:
    """Returns nodes and GPUs, and has the command export what `neva` wants to know of them."""
    if read.choice("ENV", {"dsw": False, "dlc": True}, {}):
        stated = Words(environment)
        nodes = stated.whole("WORLD_SIZE", 1, ", the number of nodes (PAI-DLC sets it)")
        rank = stated.whole("RANK", 0, ", the number of this node (PAI-DLC sets it)")
        gpus = stated.whole("KUBERNETES_CONTAINER_RESOURCE_GPU", 1, ", the GPUs of a node (PAI-DLC sets it)")
        if not stated.problems and rank >= nodes:
            stated.refuse("RANK", f"less than WORLD_SIZE={nodes}, the number of nodes")
        for name in ("MASTER_ADDR", "MASTER_PORT") if nodes > 1 else ():
            if not environment.get(name):
                stated.refuse(name, "that of the first node (PAI-DLC sets it)")
        read.problems += stated.problems
        command.environment = {"RANK": None, "NODE_RANK": str(rank), "WORLD_SIZE": str(nodes * gpus)}
        if nodes > 1:
            command.environment |= {
                name: environment.get(name, "") for name in ("MASTER_ADDR", "MASTER_PORT")
            }
        return {"trainer.num_nodes": nodes, "trainer.devices": gpus}
    command.environment = {name: None for name in ("RANK", "WORLD_SIZE", "NODE_RANK") if name in environment}
    try:
        return {"trainer.num_nodes": 1, "trainer.devices": gpus_here(environment)}
    except ConfigError as error:
        read.problems.append(str(error))
        return {}


def _run_name(values: Mapping[str, str]) -> str:
    """Returns the script's name of a run, from which its `sp-` of an unset variable is left out."""
    parts = {
        "lr": "LR",
        "minlr": "MIN_LR",
        "bs": "BATCH_SIZE",
        "gbs": "GLOBAL_BATCH_SIZE",
        "seqlen": "SEQ_LEN",
    }
    parts |= {"pr": "PR", "tp": "TP", "pp": "PP", "cp": "CP", "ac": "AC", "do": "DO"}
    parts |= {"ti": "TRAIN_ITERS", "wi": "LR_WARMUP_ITERS"}
    ends = "-".join(f"{short}-{values[name]}" for short, name in parts.items())
    return f"finetune-mcore-llava-{values['MODEL_SIZE']}-{ends}"


def main(words: Sequence[str]) -> int:
    """Runs the script with its arguments."""
    if shows_help(TRAIN_SCRIPT, TRAIN_ARGUMENTS, words):
        return 0
    return print_and_run(TRAIN_SCRIPT, words, lambda found: train_command(found, os.environ))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
