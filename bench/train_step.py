"""Seconds per training step: neva beside Hugging Face's LlavaForConditionalGeneration with torch AdamW.

Same shape, same weights, same batch, float32, one process each; the two take turns, so that a noisy machine slows both.
Prints samples/s of each, their ratio, and the largest difference of the losses of the first steps.

    python bench/train_step.py [--steps 20] [--threads 2]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from neva.constants import IGNORE_INDEX, IMAGE_TOKEN_ID
from neva.data.batch import Batch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.small_llava import IMAGE_ID, VISION, VOCAB, random_llava, write_twin

BATCH, TEXT, LR, BETAS = 4, 192, 1e-4, (0.9, 0.999)
ANSWER_SHARE = 1 / 3  # of the text, as in LLaVA's instruction data
AGREEMENT = 1e-5


def batch() -> Batch:
    """Returns ids [B, S], shifted labels [B, S] and pixels [B, 3, side, side]: an image, a question, an answer."""
    draw = torch.Generator().manual_seed(0)
    text = torch.randint(3, VOCAB, (BATCH, TEXT), generator=draw)
    input_ids = torch.cat([torch.full((BATCH, VISION.num_tokens), IMAGE_TOKEN_ID), text], dim=1)
    labels = torch.full_like(input_ids, IGNORE_INDEX)
    answer = int(TEXT * ANSWER_SHARE)
    labels[:, -answer - 1 : -1] = input_ids[:, -answer:]
    pixels = torch.randn(BATCH, 3, VISION.image_size, VISION.image_size, generator=draw)
    return Batch(input_ids, labels, pixels, [""] * BATCH, input_ids.numel())


def neva_steps(folder: Path) -> Iterator[float]:
    """Yields the loss of one step after another."""
    from omegaconf import OmegaConf

    from neva.distributed import cuda_on_cpu
    from neva.distributed.megatron_ddp import data_parallel
    from neva.optim.megatron import build_optimizer
    from neva.training.step import run_global_batch

    model = random_llava().train()
    write_twin(model, folder)
    device = cuda_on_cpu.install()
    chunks = data_parallel([model])
    optim = OmegaConf.create({"lr": LR, "weight_decay": 0.0, "betas": BETAS, "sched": {"min_lr": 0.0}})
    optimizer = build_optimizer(chunks, optim, {}, clip_grad=1.0, dtype=torch.float32)
    data = batch()
    while True:
        chunks[0].zero_grad_buffer()
        optimizer.zero_grad()
        loss = run_global_batch(chunks, [data], device).mean
        optimizer.step()
        yield loss


def transformers_steps(folder: Path) -> Iterator[float]:
    """Yields the loss of one step after another."""
    from transformers import LlavaForConditionalGeneration

    loaded: Any = LlavaForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    model, info = loaded
    lost = [name for name in info["missing_keys"] if "post_layernorm" not in name]
    if lost or info["unexpected_keys"]:
        raise RuntimeError(f"the two models differ: missing {lost}, unexpected {info['unexpected_keys']}")
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=BETAS, weight_decay=0.0)
    data = batch()
    ids = data.input_ids.masked_fill(data.input_ids == IMAGE_TOKEN_ID, IMAGE_ID)
    labels = data.labels.roll(1, dims=1)  # transformers shifts by itself
    while True:
        optimizer.zero_grad()
        loss = model(
            input_ids=ids,
            pixel_values=data.pixel_values,
            attention_mask=torch.ones_like(ids),
            labels=labels,
        ).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        yield loss.item()


def worker(steps: Callable[[Path], Iterator[float]], folder: Path, threads: int, pipe: Connection) -> None:
    """Takes one step whenever asked and answers with its loss and its seconds."""
    torch.set_num_threads(threads)
    runs = steps(folder)
    while pipe.recv():
        start = time.perf_counter()
        loss = next(runs)
        pipe.send((loss, time.perf_counter() - start))


def measure(steps: int, threads: int) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """Returns (loss, seconds) of each step of neva and of transformers, taken in turns; the first warms up."""
    context = get_context("spawn")
    results: list[list[tuple[float, float]]] = [[], []]
    with tempfile.TemporaryDirectory() as name:
        pipes, processes = [], []
        for function in (neva_steps, transformers_steps):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=worker, args=(function, Path(name), threads, theirs), daemon=True
            )
            process.start()
            pipes.append(ours)
            processes.append(process)
        for _ in range(steps + 1):
            for pipe, rows in zip(pipes, results, strict=True):
                pipe.send(True)
                rows.append(pipe.recv())
        for pipe, process in zip(pipes, processes, strict=True):
            pipe.send(False)
            process.join()
    return results[0], results[1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=20, help="steps of each, after one that warms up")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of each process")
    arguments = parser.parse_args()
    ours, theirs = measure(arguments.steps, arguments.threads)
    seconds = [statistics.median(seconds for _, seconds in rows[1:]) for rows in (ours, theirs)]
    differences = [abs(a - b) for (a, _), (b, _) in zip(ours[:3], theirs[:3], strict=True)]
    result = {
        "neva_samples_per_s": round(BATCH / seconds[0], 2),
        "transformers_samples_per_s": round(BATCH / seconds[1], 2),
        "ratio": round(seconds[1] / seconds[0], 3),
        "losses": [round(loss, 6) for loss, _ in ours[:3]],
        "loss_differences": differences,
        "losses_agree": max(differences) <= AGREEMENT,
    }
    print(json.dumps(result, indent=2))
    if not result["losses_agree"]:
        raise SystemExit(f"losses differ by {max(differences):.2e}, more than {AGREEMENT:.0e}")


if __name__ == "__main__":
    main()
