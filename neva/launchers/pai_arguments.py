"""What the arguments of Pai-Megatron-Patch's scripts are called, and what each may say."""

from __future__ import annotations

import sys
from collections.abc import Sequence

TRAIN_SCRIPT, CONVERT_SCRIPT = "run_mcore_llava.sh", "hf2mcore_convertor_llava.sh"
TRAIN_ARGUMENTS = [
    "ENV",
    "MODEL_SIZE",
    "BATCH_SIZE",
    "GLOBAL_BATCH_SIZE",
    "LR",
    "MIN_LR",
    "SEQ_LEN",
    "DECODER_SEQ_LEN",
    "PR",
    "TP",
    "PP",
    "CP",
    "DO",
    "FL",
    "AC",
    "OPTIMIZER_OFFLOAD",
    "SAVE_INTERVAL",
    "DATASET_PATH",
    "VALID_DATASET_PATH",
    "PRETRAIN_CHECKPOINT_PATH",
    "TRAIN_ITERS",
    "LR_WARMUP_ITERS",
    "OUTPUT_BASEPATH",
]
CONVERT_ARGUMENTS = [
    "MODEL_SIZE",
    "SOURCE_LLM_CKPT_PATH",
    "SOURCE_CLIP_CKPT_PATH",
    "TARGET_CKPT_PATH",
    "TP",
    "PP",
    "mg2hf",
    "PR",
    "HF_CKPT_PATH",
]
TRUTH = {"false": False, "true": True}
SIZES = {"7B": "7B"}
OTHER_SIZES = dict.fromkeys(
    ("0.5B", "1.5B", "3B", "14B", "32B", "72B"),
    "only 7B (Mistral 7B) has sizes in the script: use `neva train` with model/llm=from_checkpoint",
)
PRECISIONS: dict[str, object] = {"bf16": "bf16", "fp16": 16, "fp8": "bf16"}
RECOMPUTE = {"sel": "selective", "full": "full", "false": None, "none": None, "true": None}
NO_ACTIVATION_OFFLOAD = {
    "offload": "neva does not move activations to CPU memory: give sel or full, which recompute them"
}
OFFLOAD = {"false": False, "static": True, "auto": True}


def shows_help(script: str, arguments: Sequence[str], words: Sequence[str]) -> bool:
    """Writes the arguments of a script where `words` ask for help, and returns whether they do."""
    if not {"-h", "--help"} & set(words):
        return False
    sys.stdout.write(f"usage: {script} [--print-only] {' '.join(arguments)}\nThe page: docs/migrate/pai.md\n")
    return True
