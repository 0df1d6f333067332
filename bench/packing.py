"""Useful tokens a second of packed samples, against padded batches of the random order and of `length_grouped`.

One rank's share of LLaVA-1.5's second stage: 16 samples a step, with the lengths of `bench/llava_data.py`.

The model is small, so that a step is short: an image takes 64 tokens of its tower, which is frozen, and all lengths are
scaled by 64 / 576, so that the shares of padding stay what they are. A step is a forward and a backward pass.
Each order takes its steps in turns with the others, and medians are compared.

    python -m bench.packing
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from bench.llava_data import IMAGE_TOKENS, SAMPLES, Lengths, draw_lengths
from bench.small_llava import SMALL, random_llava
from neva.data.batch import Batch
from neva.data.collate import collate
from neva.data.lengths import SampleLengths
from neva.data.packing import plan_packs
from neva.data.samplers.epoch import Epoch
from neva.registry import SAMPLERS

PER_STEP = 16
"""Samples of one rank in a step: LLaVA-1.5 trains 128 on 8 GPUs."""


def orders(lengths: Lengths, packed_length: int) -> dict[str, Iterator[list[list[int]]]]:
    """Returns, for each way, the rows of one step after another as indices of samples."""
    count = len(lengths.positions)
    text = lengths.positions - IMAGE_TOKENS * lengths.has_image
    measured = SampleLengths(text.astype(np.int32), lengths.has_image.astype(np.uint16), IMAGE_TOKENS)
    epoch = Epoch(0, 1, count, PER_STEP * 8, 50, False, lambda: measured)

    def alone(name: str) -> Iterator[list[list[int]]]:
        order = SAMPLERS[name].indices(epoch)[:count].tolist()
        for first in range(0, count - PER_STEP * 8, PER_STEP * 8):
            yield [[index] for index in order[first : first + PER_STEP * 8 : 8]]

    def packed(rows: int) -> Iterator[list[list[int]]]:
        plan = plan_packs(np.random.default_rng(0).permutation(count), lengths.positions, packed_length)
        shuffled = np.random.default_rng(1).permutation(len(plan)).tolist()
        for first in range(0, len(plan) - rows, rows):
            yield [plan.members(pack) for pack in shuffled[first : first + rows]]

    tokens = PER_STEP * lengths.positions.mean()
    rows = max(1, round(tokens / packed_length))
    return {
        "random order, padded": alone("cyclic"),
        "length_grouped, padded": alone("length_grouped"),
        f"packed into {packed_length}": packed(rows),
    }


def batches(
    rows: Sequence[Sequence[int]], lengths: Lengths, micro_batch: int, draw: torch.Generator
) -> list[Batch]:
    """Returns the micro batches of a step, as the loader makes them."""
    filled = [[lengths.sample(number, SMALL, draw) for number in row] for row in rows]
    return collate(filled, micro_batch, pad_id=0, pad_to_multiple_of=8, same_length=False)


def measure(steps: int, packed_length: int, micro_batch: int) -> dict[str, dict[str, float]]:
    """Returns the padding and the useful tokens a second of each order."""
    from neva.distributed import cuda_on_cpu
    from neva.distributed.megatron_ddp import data_parallel
    from neva.training.step import run_global_batch

    model = random_llava()
    for part in (model.vision_tower, model.projector):
        assert part is not None
        part.requires_grad_(False)
    device = cuda_on_cpu.install()
    chunks = data_parallel([model])
    lengths, draw = draw_lengths(20_000, seed=0), torch.Generator().manual_seed(0)
    ways = orders(lengths, packed_length)
    rates: dict[str, list[float]] = {name: [] for name in ways}
    tokens, positions = dict.fromkeys(ways, 0), dict.fromkeys(ways, 0)
    for step in range(steps + 1):
        for name, rows in ways.items():
            size = 1 if name.startswith("packed") else micro_batch
            batch = batches(next(rows), lengths, size, draw)
            chunks[0].zero_grad_buffer()
            start = time.process_time()  # of this process alone, whatever else the machine does
            run_global_batch([*chunks], batch, device)
            seconds = time.process_time() - start
            useful = sum(micro.num_tokens for micro in batch)
            if step:  # the first warms up
                rates[name].append(useful / seconds)
                tokens[name] += useful
                positions[name] += sum(micro.input_ids.numel() for micro in batch)
    return {
        name: {"tokens_per_s": statistics.median(rates[name]), "padding": 1 - tokens[name] / positions[name]}
        for name in ways
    }


def fills() -> dict[str, float]:
    """Returns the share of all positions that 665,298 samples fill, and the seconds that their plan takes."""
    lengths = draw_lengths(SAMPLES, seed=0)
    order = np.random.default_rng(0).permutation(SAMPLES)
    found = {}
    for packed_length in (2048, 4096, 8192, 16384):
        start = time.perf_counter()
        plan = plan_packs(order, lengths.positions, packed_length)
        found[f"fill at {packed_length}"] = round(plan.fill(lengths.positions, packed_length), 4)
        found[f"seconds at {packed_length}"] = round(time.perf_counter() - start, 1)
    return found


def order_costs(count: int) -> dict[str, float]:
    """Returns what the beginning of an epoch of so many samples costs, and a step of it."""
    epoch = Epoch(
        0, 1, count, 128, None, False, lambda: SampleLengths(np.empty(0, np.int32), np.empty(0, np.uint16), 0)
    )
    start = time.perf_counter()
    order = SAMPLERS["cyclic"].indices(epoch)
    begun = time.perf_counter()
    for first in range(0, 128_000, 128):
        order[first : first + 128].tolist()
    return {
        "seconds to begin": round(begun - start, 4),
        "milliseconds a step": round(time.perf_counter() - begun, 4),  # of 1,000
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=12, help="steps of each order, after one that warms up")
    parser.add_argument("--packed-length", type=int, default=8192)
    parser.add_argument("--micro-batch", type=int, default=16, help="of the padded orders")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    found = measure(arguments.steps, arguments.packed_length, arguments.micro_batch)
    padded, grouped, packed = (row["tokens_per_s"] for row in found.values())
    result = {
        "mean length": round(float(draw_lengths(SAMPLES, 0).positions.mean()), 1),
        **fills(),
        **{name: {key: round(value, 3) for key, value in row.items()} for name, row in found.items()},
        "packed over random order": round(packed / padded, 2),
        "packed over length_grouped": round(packed / grouped, 2),
        "order of 10^8 samples": order_costs(10**8),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
