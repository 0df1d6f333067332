"""Images per second from file to tensors: neva's dataset beside others that call the Hugging Face processor.

The same JPEG photographs and conversations, the same tokenizer and image processor: in a torch DataLoader that calls
the processor per sample and, in shards of `neva data convert`, by megatron-energon's loader with the processor in its
task encoder. Each has 1 and 2 workers; they take turns, so that a noisy machine slows all. Prints medians of images/s
and of processor time an image, which other work on the machine disturbs least, their ratios, whether the pixels are
bit-equal, and the memory of a worker at the quarters of a pass.

    python bench/data.py [--images 96] [--rounds 5] [--energon-python energon/bin/python]

The Python is one with megatron-energon 7, torch and transformers; without it energon is left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.processor_sample import (
    PATCH,
    SIDE,
    fingerprint,
    image_processor,
    processor_of,
    processor_time_s,
    tensors_of,
)
from neva.cli import main as neva_main
from neva.commands.scratch import scratch

WIDTH, HEIGHT = 640, 480
WORDS = [
    "what",
    "is",
    "the",
    "colour",
    "of",
    "bus",
    "man",
    "standing",
    "near",
    "road",
    "and",
    "a",
    "white",
    "red",
    "dog",
    "that",
    "sits",
    "under",
    "tree",
    "in",
    "park",
]
WORKERS = (1, 2)


def photograph(draw: np.random.Generator) -> Image.Image:
    """Returns smooth areas with noise: what a camera makes takes as long to decode."""
    small = draw.integers(0, 256, (HEIGHT // 16, WIDTH // 16, 3), dtype=np.uint8)
    smooth = np.asarray(
        Image.fromarray(small).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), dtype=np.int16
    )
    noisy = smooth + draw.normal(0, 5, smooth.shape).astype(np.int16)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def write_data(folder: Path, count: int) -> PreTrainedTokenizerFast:
    """Writes photographs, LLaVA's conversations about them and a byte-level tokenizer, which is returned."""
    draw = np.random.default_rng(0)
    records = []
    for number in range(count):
        photograph(draw).save(folder / f"{number}.jpg", quality=90)
        texts = [" ".join(draw.choice(WORDS, size)) for size in (12, 60, 10, 40)]
        turns = [
            {"from": ("human", "gpt")[turn % 2], "value": ("<image>\n" if turn == 0 else "") + text}
            for turn, text in enumerate(texts)
        ]
        records.append({"id": str(number), "image": f"{number}.jpg", "conversations": turns})
    (folder / "data.json").write_text(json.dumps(records))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(WORDS)], trainer)
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


class ProcessorPerSample(Dataset[Any]):
    """What a user of transformers writes: open, put the turns together, call the processor."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.records = json.loads((folder / "data.json").read_text())
        self.processor = processor_of(folder / "tokenizer")

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Any:
        record = self.records[index]
        with Image.open(self.folder / record["image"]) as image:
            return tensors_of(self.processor, record, image)


class EnergonPasses:
    """Passes of megatron-energon over shards of the same records, in a process of another Python."""

    def __init__(self, python: Path, folder: Path, count: int) -> None:
        shards = folder / "shards"
        words = ["data", "convert", folder / "data.json", shards, "--image-folder", folder]
        per_shard = max(1, count // 8)  # energon deals whole shards out to its workers
        assert neva_main([*map(str, words), "--samples-per-shard", str(per_shard)]) == 0
        reader = Path(__file__).resolve().parent / "energon_reader.py"
        command = [str(word) for word in (python, reader, shards, folder / "tokenizer", count)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pixels: set[str] = set()

    def one_pass(self, workers: int) -> tuple[float, float]:
        """Returns images/s behind the first of each worker, and ms of processor time an image."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{workers}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"energon's process ended with {self.process.wait()}, see above")
        answer = json.loads(line)
        self.pixels |= set(answer["pixels"])
        return answer["speed"], answer["processor_ms"]

    def close(self) -> None:
        """Ends the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def neva_dataset(
    folder: Path, tokenizer: PreTrainedTokenizerFast, records: str, images: str, decoder: str = "pillow"
) -> Dataset[Any]:
    """Returns what training reads, labels included, of records and an image folder, which may be null."""
    from neva.config.load import load
    from neva.config.tower import vision_config_of
    from neva.data.build import build_dataset

    tower = "model.mm_cfg.vision_encoder"
    overrides = [
        f"model.data.data_path={records}",
        f"model.data.image_folder={images}",
        f"model.tokenizer.type={folder}/tokenizer",
        "model.vocab_size=null",
        "model.encoder_seq_length=2048",
        "model.max_position_embeddings=2048",
        f"{tower}.image_size={SIDE}",
        f"{tower}.patch_dim={PATCH}",
        f"{tower}.image_mean={list(image_processor().image_mean)}",
        f"{tower}.image_std={list(image_processor().image_std)}",
        "model.data.image_aspect_ratio=square",
        f"model.data.jpeg_decoder={decoder}",
    ]
    model = load("quickstart_finetune", overrides).model
    return build_dataset(model, vision_config_of(model), tokenizer)


def one_pass(dataset: Dataset[Any], workers: int) -> tuple[float, float, list[float]]:
    """Returns images/s behind the first of each worker, ms of processor time an image, and MiB of a worker's own at
    the quarters of the pass."""
    before_s = processor_time_s()
    loader = DataLoader(dataset, batch_size=None, num_workers=workers, generator=torch.Generator())
    samples: Iterator[Any] = iter(loader)
    count, memory, started = len(dataset), [], 0.0  # type: ignore[arg-type]
    for number, _ in enumerate(samples, 1):
        if number == workers:
            started = time.perf_counter()
        if number % (count // 4) == 0 and number < count:
            memory.append(private_mib(samples._workers[0].pid))  # type: ignore[attr-defined]
    elapsed_s = time.perf_counter() - started
    del samples  # its workers end
    return (count - workers) / elapsed_s, (processor_time_s() - before_s) / count * 1e3, memory


def private_mib(process: int) -> float:
    """Returns the memory that a process shares with no other."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def main() -> int:
    """Prints a line for each number of workers. Returns 1 when pixels differ."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--energon-python", type=Path, metavar="PATH", help="of an environment with energon")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with scratch(), tempfile.TemporaryDirectory() as name:
        return compare(Path(name), options.images, options.rounds, options.energon_python)


def compare(folder: Path, images: int, rounds: int, energon_python: Path | None) -> int:
    """Prints the lines; see `main`."""
    tokenizer = write_data(folder, images)
    tokenizer.save_pretrained(folder / "tokenizer")
    datasets = {
        "neva": neva_dataset(folder, tokenizer, f"{folder}/data.json", str(folder)),
        "processor": ProcessorPerSample(folder),
        "simplejpeg": neva_dataset(folder, tokenizer, f"{folder}/data.json", str(folder), "simplejpeg"),
    }
    ours, theirs = datasets["neva"], datasets["processor"]
    energon = None if energon_python is None else EnergonPasses(energon_python, folder, images)
    if energon is not None:
        datasets["neva on shards"] = neva_dataset(folder, tokenizer, f"{folder}/shards", "null")
    faster = datasets["simplejpeg"]
    equal = all(
        torch.equal(ours[n].pixel_values[0], theirs[n]["pixel_values"][0])
        and torch.equal(ours[n].pixel_values[0], faster[n].pixel_values[0])
        for n in range(8)
    )
    sys.stdout.write(f"{images} JPEGs of {WIDTH} x {HEIGHT}; pixels bit-equal: {equal}\n")
    for workers in WORKERS:
        passes: dict[str, list[tuple[float, float]]] = {}
        memory: list[float] = []
        for _ in range(rounds):
            for side, dataset in datasets.items():
                *measured, used = one_pass(dataset, workers)
                passes.setdefault(side, []).append((measured[0], measured[1]))
                memory = used if side == "neva" else memory
            if energon is not None:
                passes.setdefault("energon", []).append(energon.one_pass(workers))
        quarters = ", ".join(f"{value:.0f}" for value in memory)
        sys.stdout.write(
            f"{workers} workers: {beside(passes, 'neva', 'processor')}; a worker at the quarters: {quarters} MiB\n"
            f"{workers} workers, jpeg_decoder=simplejpeg: {beside(passes, 'simplejpeg', 'processor')}\n"
        )
        if energon is not None:
            sys.stdout.write(f"{workers} workers on shards: {beside(passes, 'neva on shards', 'energon')}\n")
    if energon is None:
        sys.stdout.write("energon: left out; --energon-python names a Python that has megatron-energon 7\n")
        return 0 if equal else 1
    energon.close()
    known = {fingerprint(ours[n].pixel_values[0]) for n in range(images)}
    sys.stdout.write(f"energon's pixels bit-equal: {energon.pixels <= known}\n")
    return 0 if equal and energon.pixels <= known else 1


def beside(passes: dict[str, list[tuple[float, float]]], ours: str, theirs: str) -> str:
    """Returns the medians of two sides, and how many times as good the first is."""
    (speed, time_ms), (other_speed, other_ms) = (
        [statistics.median(values) for values in zip(*passes[side], strict=True)] for side in (ours, theirs)
    )
    return (
        f"neva {speed:.1f} images/s, {theirs} {other_speed:.1f}, ratio {speed / other_speed:.2f}; processor time "
        f"{time_ms:.1f} and {other_ms:.1f} ms an image, ratio {other_ms / time_ms:.2f}"
    )


if __name__ == "__main__":
    raise SystemExit(main())
