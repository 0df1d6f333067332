"""Seconds per training step: neva beside Hugging Face's LlavaForConditionalGeneration.

Same shape, same weights, same batch, same parts frozen, one process each; the two take turns, so that a noisy machine
slows both. `--against plain` is transformers as its Trainer runs it; `tuned` compiles each layer, makes logits of the
positions with labels alone, and has the fused AdamW; neva then has `model.torch_compile`. Attention is SDPA in all. In
bfloat16 neva keeps float32 main weights, transformers autocasts float32 ones. Prints samples/s of each and their ratio,
for the whole step and without the optimizer (medians, with the quartiles of the ratio turn by turn), and the largest
difference of the losses of the first steps.

A batch is `even`: four samples of one length, in one micro batch. Or it is 16 samples with the lengths of LLaVA-1.5's
second stage, four to a micro batch: neva sorts those of a step by length, as its loader does; transformers takes them
as drawn (`mixed`), or sorted too (`grouped`), which is the least padding that any grouping of its Trainer can come to.

    python bench/train_step.py [--shape job] [--stage finetune] [--against tuned] [--batch mixed] [--dtype float32]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from neva.constants import IGNORE_INDEX, IMAGE_TOKEN_ID
from neva.data.batch import Batch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.small_llava import IMAGE_ID, JOB, SMALL, Shape, random_llava, write_twin
from bench.step_batches import EVEN, GROUPED, SAMPLES, micro_batches

LR, BETAS = 1e-4, (0.9, 0.999)
WARM_UP = 3  # of which the first two compile
SHAPES = {"small": SMALL, "job": JOB}
STAGES = {
    "pretrain": ("projector",),
    "finetune": ("projector", "language_model"),
    "all": ("vision_tower", "projector", "language_model"),
}
"""What trains."""
AGREEMENT = {"float32": 1e-5, "bfloat16": 3e-2}
"""Largest difference of the losses of the first steps: rounding in a loss of ten."""


@dataclass(frozen=True)
class Job:
    """What both sides do; `folder` holds the weights."""

    folder: Path
    shape: Shape
    trained: tuple[str, ...]
    dtype: torch.dtype
    tuned: bool
    threads: int
    batch: str
    recomputes: bool


@dataclass(frozen=True)
class Step:
    """A training step: its loss, and seconds of all of it and of its optimizer."""

    loss: float
    seconds: float
    optimizer: float


def neva_steps(job: Job) -> Iterator[Step]:
    """Yields one step after another."""
    from omegaconf import OmegaConf

    from neva.distributed import cuda_on_cpu
    from neva.distributed.megatron_ddp import data_parallel
    from neva.model.build import set_trainable
    from neva.model.compiled import compile_layers
    from neva.optim.megatron import build_optimizer
    from neva.training.step import run_global_batch

    model = random_llava(job.shape, job.dtype, job.recomputes).to(job.dtype).train()
    write_twin(model, job.folder, job.shape)
    set_trainable(model, job.trained)
    if job.tuned:
        compile_layers(model)
    device = cuda_on_cpu.install()
    chunks = data_parallel([model])
    optim = OmegaConf.create({"lr": LR, "weight_decay": 0.0, "betas": BETAS, "sched": {"min_lr": 0.0}})
    optimizer = build_optimizer(chunks, optim, {}, clip_grad=1.0, dtype=job.dtype)
    data = [
        replace(micro, pixel_values=micro.pixel_values.to(job.dtype))
        for micro in micro_batches(job.shape, job.batch, are_sorted=True)
    ]
    while True:
        start = time.perf_counter()
        chunks[0].zero_grad_buffer()
        optimizer.zero_grad()
        loss = run_global_batch(chunks, data, device).mean
        between = time.perf_counter()
        optimizer.step()
        end = time.perf_counter()
        yield Step(loss, end - start, end - between)


def transformers_steps(job: Job) -> Iterator[Step]:
    """Yields one step after another."""
    from transformers import LlavaForConditionalGeneration

    loaded: Any = LlavaForConditionalGeneration.from_pretrained(job.folder, output_loading_info=True)
    model, info = loaded
    lost = [name for name in info["missing_keys"] if "post_layernorm" not in name]
    if lost or info["unexpected_keys"]:
        raise RuntimeError(f"the two models differ: missing {lost}, unexpected {info['unexpected_keys']}")
    model.train()
    parts = {
        "vision_tower": [model.model.vision_tower],
        "projector": [model.model.multi_modal_projector],
        "language_model": [model.model.language_model, model.lm_head],
    }
    for name, modules in parts.items():
        for module in modules:
            module.requires_grad_(name in job.trained)
    trained = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LR, betas=BETAS, weight_decay=0.0, fused=job.tuned)
    data = micro_batches(job.shape, job.batch, are_sorted=job.batch == GROUPED)
    num_labels = sum(micro.num_labels for micro in data)
    if job.recomputes:
        model.gradient_checkpointing_enable()
    if job.tuned:
        for layer in (*model.model.language_model.layers, *model.model.vision_tower.encoder.layers):
            layer.compile()
    precision = torch.autocast("cpu", job.dtype) if job.dtype != torch.float32 else nullcontext()
    while True:
        start = time.perf_counter()
        optimizer.zero_grad()
        losses = []
        for micro in data:
            with precision:
                mean = (loss_at_labels if job.tuned else plain_loss)(model, inputs_of(micro), micro.labels)
            losses.append(mean * (micro.num_labels / num_labels))
            losses[-1].backward()
        between = time.perf_counter()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        end = time.perf_counter()
        yield Step(sum(loss.item() for loss in losses), end - start, end - between)


def inputs_of(micro: Batch) -> dict[str, Any]:
    """Returns what transformers calls them, without a cache of keys and values, as its Trainer asks for none.

    Pads stand behind the text, where no token sees them: no mask is made.
    """
    has_images = len(micro.pixel_values) > 0
    return {
        "input_ids": micro.input_ids.masked_fill(micro.input_ids == IMAGE_TOKEN_ID, IMAGE_ID),
        "pixel_values": micro.pixel_values if has_images else None,
        "use_cache": False,
    }


def plain_loss(model: Any, inputs: dict[str, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
    """The loss that the model itself returns; it shifts labels."""
    loss: torch.Tensor = model(**inputs, labels=labels.roll(1, dims=1)).loss
    return loss


def loss_at_labels(model: Any, inputs: dict[str, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
    """The same of logits at the labels alone."""
    hidden = model.model(**inputs).last_hidden_state
    kept = labels != IGNORE_INDEX
    return torch.nn.functional.cross_entropy(model.lm_head(hidden[kept]).float(), labels[kept])


def worker(steps: Callable[[Job], Iterator[Step]], job: Job, pipe: Connection) -> None:
    """Takes one step whenever asked and answers with it."""
    torch.set_num_threads(job.threads)
    runs = steps(job)
    while pipe.recv():
        pipe.send(next(runs))


def measure(job: Job, steps: int) -> tuple[list[Step], list[Step]]:
    """Returns the steps of neva and of transformers, taken in turns; the first `WARM_UP` warm up."""
    context = get_context("spawn")
    results: list[list[Step]] = [[], []]
    pipes, processes = [], []
    for function in (neva_steps, transformers_steps):
        ours, theirs = context.Pipe()
        process = context.Process(target=worker, args=(function, job, theirs), daemon=True)
        process.start()
        pipes.append(ours)
        processes.append(process)
    for _ in range(WARM_UP + steps):
        for pipe, rows in zip(pipes, results, strict=True):
            pipe.send(True)
            rows.append(pipe.recv())
    for pipe, process in zip(pipes, processes, strict=True):
        pipe.send(False)
        process.join()
    return results[0], results[1]


def ratio(ours: list[float], theirs: list[float], samples: int) -> dict[str, float]:
    """Returns samples/s of each by their medians, the ratio of those, and the quartiles of the ratios turn by turn."""
    turns = [b / a for a, b in zip(ours, theirs, strict=True)]
    first, _, third = statistics.quantiles(turns, n=4)
    a, b = statistics.median(ours), statistics.median(theirs)
    return {
        "neva_samples_per_s": round(samples / a, 2),
        "transformers_samples_per_s": round(samples / b, 2),
        "ratio": round(b / a, 3),
        "first_quartile": round(first, 3),
        "third_quartile": round(third, 3),
    }


def parser(description: str | None) -> argparse.ArgumentParser:
    """Returns the flags that choose a `Job`."""
    found = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("--shape", choices=SHAPES, default="small", help="small, or the ratios of a 7B job")
    found.add_argument("--stage", choices=STAGES, default="all", help="what trains")
    found.add_argument("--against", choices=("plain", "tuned"), default="plain", help="the other side")
    found.add_argument("--batch", choices=SAMPLES, default=EVEN, help="lengths of its samples")
    found.add_argument("--recompute", action="store_true", help="layers, from their inputs, on both sides")
    found.add_argument("--dtype", choices=AGREEMENT, default="float32")
    found.add_argument("--threads", type=int, default=2, help="CPU threads of each process")
    return found


def job_of(arguments: argparse.Namespace, folder: Path) -> Job:
    """Returns what flags choose."""
    return Job(
        folder,
        SHAPES[arguments.shape],
        STAGES[arguments.stage],
        getattr(torch, arguments.dtype),
        arguments.against == "tuned",
        arguments.threads,
        arguments.batch,
        arguments.recompute,
    )


def main() -> None:
    """Measures and prints."""
    flags = parser(__doc__)
    flags.add_argument("--steps", type=int, default=20, help=f"steps of each, after {WARM_UP} that warm up")
    arguments = flags.parse_args()
    with tempfile.TemporaryDirectory() as name:
        ours, theirs = measure(job_of(arguments, Path(name)), arguments.steps)
    differences = [abs(a.loss - b.loss) for a, b in zip(ours[:3], theirs[:3], strict=True)]
    timed = [rows[WARM_UP:] for rows in (ours, theirs)]
    whole, learnt = (
        [[row.seconds - spared * row.optimizer for row in rows] for rows in timed] for spared in (0, 1)
    )
    samples = SAMPLES[arguments.batch]
    result = {
        "step": ratio(whole[0], whole[1], samples),
        "forward and backward": ratio(learnt[0], learnt[1], samples),
        "losses": [round(row.loss, 6) for row in ours[:3]],
        "loss_differences": differences,
        "losses_agree": max(differences) <= AGREEMENT[arguments.dtype],
    }
    print(json.dumps(result, indent=2))
    if not result["losses_agree"]:
        raise SystemExit(
            f"losses differ by {max(differences):.2e}, more than {AGREEMENT[arguments.dtype]:.0e}"
        )


if __name__ == "__main__":
    main()
