"""Generated tokens per second: neva beside `transformers.generate` on the same weights, greedy, float32.

Both answer the same prompts in one process and take turns; prompts and answers are of mixed length, half of the
prompts show an image. Prints tokens/s of each and their ratio (median and spread of the runs), by the clock and, for a
machine that others use too, by processor time, and how many answers agree token by token.

    python bench/generate.py [--runs 3] [--threads 1] [--batches 1 8] [--profile]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from neva.constants import IMAGE_TOKEN_ID
from neva.distributed import cuda_on_cpu, groups
from neva.inference.decoder import Decoder
from neva.inference.generate import Continuation, ContinuousBatch, Limits, Prompt, encode
from neva.inference.sampling import Sampling
from neva.model.llava import NevaModel

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.small_llava import IMAGE_ID, VISION, VOCAB, random_llava, write_twin

GREEDY = Sampling(greedy=True, temperature=1.0, top_k=0, top_p=1.0, repetition_penalty=1.0)
SHORTEST_QUESTION, LONGEST_QUESTION = 8, 96
SHORTEST_ANSWER, LONGEST_ANSWER = 8, 128
IMAGE_SHARE = 0.5  # of the prompts


def prompts_of(count: int) -> tuple[list[Prompt], list[int]]:
    """Returns prompts and the lengths of their answers, both of mixed length."""
    draw = torch.Generator().manual_seed(0)
    questions = torch.randint(SHORTEST_QUESTION, LONGEST_QUESTION + 1, (count,), generator=draw).tolist()
    answers = torch.randint(SHORTEST_ANSWER, LONGEST_ANSWER + 1, (count,), generator=draw).tolist()
    prompts = []
    for number, length in enumerate(questions):
        images = int(number < count * IMAGE_SHARE)
        image = torch.full((images * VISION.num_tokens,), IMAGE_TOKEN_ID)
        ids = torch.cat([image, torch.randint(3, VOCAB, (length,), generator=draw)])
        pixels = torch.randn(images, 3, VISION.image_size, VISION.image_size, generator=draw)
        prompts.append(Prompt(ids, pixels))
    order = torch.randperm(count, generator=draw).tolist()
    return [prompts[number] for number in order], [answers[number] for number in order]


def exported(model: NevaModel) -> Any:
    """Returns transformers' LLaVA with the weights of the model."""
    from transformers import LlavaForConditionalGeneration

    with tempfile.TemporaryDirectory() as folder:
        write_twin(model, Path(folder))
        return LlavaForConditionalGeneration.from_pretrained(folder).eval()


def has_length(length: int, ids: list[int]) -> bool:
    """Ends an answer."""
    return len(ids) == length


def neva_answers(decoder: Decoder, prompts: list[Prompt], lengths: list[int], batch: int) -> list[list[int]]:
    """Returns the answers' ids; an answer ends at its length."""
    limits = Limits(GREEDY, LONGEST_ANSWER, 0, [])
    asked = (
        Continuation(
            number,
            prompt.input_ids,
            encode(decoder.model, prompt.pixel_values),
            limits,
            0,
            partial(has_length, length),
        )
        for number, (prompt, length) in enumerate(zip(prompts, lengths, strict=True))
    )
    found = {ended.number: ended.answer for ended in ContinuousBatch(decoder, batch).answers(asked)}
    return [found[number] for number in range(len(prompts))]


def transformers_answers(
    model: Any, prompts: list[Prompt], lengths: list[int], batch: int
) -> list[list[int]]:
    """Returns the answers' ids; batches are padded on the left and end with their longest answer."""
    found = []
    for first in range(0, len(prompts), batch):
        part, wanted = prompts[first : first + batch], lengths[first : first + batch]
        width = max(len(prompt.input_ids) for prompt in part)
        ids, mask = (
            torch.zeros(len(part), width, dtype=torch.long),
            torch.zeros(len(part), width, dtype=torch.long),
        )
        for row, prompt in enumerate(part):
            ids[row, width - len(prompt.input_ids) :] = prompt.input_ids
            mask[row, width - len(prompt.input_ids) :] = 1
        ids = ids.masked_fill(ids == IMAGE_TOKEN_ID, IMAGE_ID)
        pixels = torch.cat([prompt.pixel_values for prompt in part])
        images = {"pixel_values": pixels} if len(pixels) else {}
        with cuda_on_cpu.suspended():
            out = model.generate(
                input_ids=ids, attention_mask=mask, **images, do_sample=False, max_new_tokens=max(wanted),
                eos_token_id=None, pad_token_id=0,
            )  # fmt: skip
        found += [row[width : width + count].tolist() for row, count in zip(out, wanted, strict=True)]
    return found


def measure(run: Callable[[], list[list[int]]]) -> tuple[list[list[int]], float, float]:
    """Returns the answers, and the seconds and processor seconds that they took."""
    start, start_cpu = time.perf_counter(), time.process_time()
    answers = run()
    return answers, time.perf_counter() - start, time.process_time() - start_cpu


def compare(ours: Decoder, theirs: Any, batch: int, count: int, runs: int) -> str:
    """Returns a line of the table."""
    prompts, lengths = prompts_of(count)
    sides: list[Callable[[], list[list[int]]]] = [
        lambda: neva_answers(ours, prompts, lengths, batch),
        lambda: transformers_answers(theirs, prompts, lengths, batch),
    ]
    rates: list[list[float]] = [[], []]
    cpu: list[list[float]] = [[], []]
    found: list[list[list[int]]] = [[], []]
    for _ in range(runs):
        for side, run in enumerate(sides):
            found[side], seconds, cpu_seconds = measure(run)
            rates[side].append(sum(lengths) / seconds)
            cpu[side].append(sum(lengths) / cpu_seconds)
    agree = sum(mine == other for mine, other in zip(*found, strict=True))
    cells = [f"{statistics.median(side):.0f} ({min(side):.0f} to {max(side):.0f})" for side in rates]
    return " | ".join(["", str(batch), *cells, ratio(rates), ratio(cpu), f"{agree} of {count}", ""]).strip()


def ratio(rates: list[list[float]]) -> str:
    """Returns the median and the spread of neva's rate divided by transformers' of the same turn."""
    ratios = [ours / theirs for ours, theirs in zip(*rates, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def profile(decoder: Decoder, batch: int, count: int) -> str:
    """Returns the operators that take the most time, with the number of their calls."""
    prompts, lengths = prompts_of(count)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        neva_answers(decoder, prompts, lengths, batch)
    return str(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=18))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=3, help="runs of each, in turns, after one that warms up")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8], help="batch sizes")
    parser.add_argument("--prompts", type=int, default=24, help="prompts of a run")
    parser.add_argument(
        "--profile", action="store_true", help="where neva's time goes, in place of the table"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = random_llava().eval().requires_grad_(False)
    ours = Decoder(model)
    if arguments.profile:
        for batch in arguments.batches:
            print(f"batch {batch}\n{profile(ours, batch, arguments.prompts)}")
        groups.destroy()
        return
    theirs = exported(model)
    compare(ours, theirs, 1, 2, 1)
    print(
        "| batch | neva tokens/s | transformers tokens/s | ratio | ratio by processor time | equal answers |"
    )
    print("|---|---|---|---|---|---|")
    for batch in arguments.batches:
        print(compare(ours, theirs, batch, arguments.prompts, arguments.runs), flush=True)
    groups.destroy()


if __name__ == "__main__":
    main()
