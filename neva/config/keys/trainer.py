"""`trainer.*`: what lightning.Trainer is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from neva.config.keys.field import ignored, key, refused, section

_BY_EXP_MANAGER = "exp_manager makes loggers and checkpoints"
_PRECISION = (32, "bf16", 16)


@dataclass
class SampleKeys:
    """Prompts that are answered while training."""

    prompt_file: str | None = key(
        ".json list or .jsonl lines of {prompt | text, image, answer}, as of `neva infer`; null: none are answered."
    )
    images_base_path: str | None = key(
        "Folder that their image paths are relative to; null: model.data.image_folder."
    )
    every_n_steps: int = key(
        "Optimizer steps between two rounds; there is one behind the last step too.", low=1
    )
    num_prompts: int = key("The first so many prompts of the file are asked.", low=1)
    tokens_to_generate: int = key("Longest answer, tokens; the most probable one always.", low=1)
    metric: str | None = key(
        "Score against each prompt's answer: a metric of `neva evaluate`; null: no score."
    )


@dataclass
class Trainer:
    """Training."""

    devices: int = key("Processes (GPUs) on each node.", low=1, common=True)
    num_nodes: int = key("Nodes.", low=1, common=True)
    accelerator: str = key(
        "Where to run; auto takes a GPU when there is one.", choices=("gpu", "cpu", "auto")
    )
    precision: int | str = key(
        "32; bf16, or 16 with a dynamic loss scale, both with float32 main weights.",
        choices=_PRECISION,
        common=True,
    )
    max_epochs: int | None = key("Epochs; -1: only max_steps counts.", low=-1, common=True)
    max_steps: int = key("Optimizer steps; -1: only max_epochs counts.", low=-1, common=True)
    log_every_n_steps: int = key("Steps between two lines of the log.", low=1)
    gradient_clip_val: float | None = key("Largest global gradient norm; 0 or null: no clipping.", low=0)

    val_check_interval: int | float = key(
        "Optimizer steps between two validations; a float up to 1.0: the share of an epoch.", above=0
    )
    limit_val_batches: int | float | None = key(
        "Global batches that a validation reads; a float up to 1.0: the share of them; null: all.", low=0
    )

    skip_train: bool = key(
        "Only validate, with the weights of the run's last checkpoint or those it would start from; nothing is written."
    )
    samples: SampleKeys = section()
    on_nan: str = key(
        "A step whose loss or gradient norm is not finite: fail, or skip it and count. A float16 overflow is none.",
        choices=("fail", "skip"),
    )
    max_nan_steps: int = key("With on_nan=skip, more of them in a row fail.", low=1)
    replay: str | None = key(
        "Folder of a step that was not finite: compute it with the weights of the run's last checkpoint, write nothing."
    )
    skip_steps: list[list[int]] | None = key(
        "Steps whose samples are consumed and not learnt, as [[first, last], …] with the numbers of the log.",
        optional=True,
    )
    loss_spike_ratio: float | None = key(
        "Warn of a step whose loss is so many times the mean of the 50 steps before it; null: never.",
        above=1,
        optional=True,
    )
    peak_tflops: float | None = key(
        "Dense bf16 TFLOP/s of one device, of which `mfu` is a share; null: by the name of the GPU.",
        above=0,
        optional=True,
    )
    deterministic: bool = key(
        "Kernels that give the same bits in every run of one layout; slower, and operations that have none raise.",
        optional=True,
    )

    distributed_timeout_s: float = key(
        "Seconds that one collective operation may take before the run stops and names it.", above=0
    )
    join_timeout_s: float = key("Seconds that the processes wait for each other at the start.", above=0)

    logger: Any = refused(False, why=_BY_EXP_MANAGER)
    enable_checkpointing: Any = refused(False, why=_BY_EXP_MANAGER)
    use_distributed_sampler: Any = refused(False, why="neva's own sampler already gives each rank its share")
    accumulate_grad_batches: Any = refused(
        1,
        why="accumulation follows from model.global_batch_size and model.micro_batch_size",
    )
    check_val_every_n_epoch: Any = ignored("trainer.val_check_interval counts steps across epochs")
    num_sanity_val_steps: Any = ignored("a dry run looks at the held-out set before the first step")
    limit_test_batches: Any = ignored("training runs no test loop, in NeVA neither")
    benchmark: Any = ignored("cuDNN's search decides over time only")
    enable_model_summary: Any = ignored("neva logs parameter counts by part; `--dry-run` prints them")


@dataclass
class InferenceTrainer:
    """Inference."""

    devices: int = key("Processes (GPUs) on each node.", low=1)
    num_nodes: int = key("Nodes.", low=1)
    accelerator: str = key(
        "Where to run; auto takes a GPU when there is one.", choices=("gpu", "cpu", "auto")
    )
    precision: int | str = key("Precision of the forward pass.", choices=_PRECISION)

    logger: Any = refused(False, why="answers go to output_file, nothing is logged elsewhere")
