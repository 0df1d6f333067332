"""Images per second from file to tensors: neva's dataset beside the Hugging Face processor called per sample.

The same JPEG photographs and conversations, the same tokenizer and image processor, each in a torch DataLoader of its
own with 1 and 2 workers; the two take turns, so that a noisy machine slows both. Prints the median of each, their
ratio, whether the pixels are bit-equal, and the memory of a worker at the quarters of a pass.

    python bench/data.py [--images 96] [--rounds 5]
"""

from __future__ import annotations

import argparse
import json
import statistics
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
from transformers import LlavaProcessor, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from neva.commands.scratch import scratch

SIDE, PATCH, WIDTH, HEIGHT = 336, 14, 640, 480
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


def image_processor() -> CLIPImageProcessorPil:
    """Returns CLIP's, at the size of LLaVA-1.5."""
    return CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})


class ProcessorPerSample(Dataset[Any]):
    """What a user of transformers writes: open, put the turns together, call the processor."""

    def __init__(self, folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
        self.folder = folder
        self.records = json.loads((folder / "data.json").read_text())
        self.processor = LlavaProcessor(
            image_processor(),
            tokenizer,
            patch_size=PATCH,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
        )

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Any:
        record = self.records[index]
        names = {"human": "USER: ", "gpt": "ASSISTANT: "}
        text = " ".join(names[turn["from"]] + turn["value"] for turn in record["conversations"])
        with Image.open(self.folder / record["image"]) as image:
            return self.processor(images=image.convert("RGB"), text=text, return_tensors="pt")


def neva_dataset(folder: Path, tokenizer: PreTrainedTokenizerFast) -> Dataset[Any]:
    """Returns what training reads, labels included."""
    from neva.config.load import load
    from neva.config.model_config import vision_config_of
    from neva.data.build import build_dataset

    tower = "model.mm_cfg.vision_encoder"
    tokenizer.save_pretrained(folder / "tokenizer")
    overrides = [
        f"model.data.data_path={folder}/data.json",
        f"model.data.image_folder={folder}",
        f"model.tokenizer.type={folder}/tokenizer",
        "model.vocab_size=null",
        "model.encoder_seq_length=2048",
        "model.max_position_embeddings=2048",
        f"{tower}.image_size={SIDE}",
        f"{tower}.patch_dim={PATCH}",
        f"{tower}.image_mean={list(image_processor().image_mean)}",
        f"{tower}.image_std={list(image_processor().image_std)}",
        "model.data.image_aspect_ratio=square",
    ]
    model = load("quickstart_finetune", overrides).model
    return build_dataset(model, vision_config_of(model), tokenizer)


def one_pass(dataset: Dataset[Any], workers: int) -> tuple[float, list[float]]:
    """Returns images/s behind the first of each worker, and MiB of a worker's own at the quarters of the pass."""
    loader = DataLoader(dataset, batch_size=None, num_workers=workers, generator=torch.Generator())
    samples: Iterator[Any] = iter(loader)
    count, memory, started = len(dataset), [], 0.0  # type: ignore[arg-type]
    for number, _ in enumerate(samples, 1):
        if number == workers:
            started = time.perf_counter()
        if number % (count // 4) == 0 and number < count:
            memory.append(private_mib(samples._workers[0].pid))  # type: ignore[attr-defined]
    return (count - workers) / (time.perf_counter() - started), memory


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
    options = parser.parse_args()
    torch.set_num_threads(1)
    with scratch(), tempfile.TemporaryDirectory() as name:
        tokenizer = write_data(Path(name), options.images)
        ours, theirs = neva_dataset(Path(name), tokenizer), ProcessorPerSample(Path(name), tokenizer)
        equal = all(torch.equal(ours[n].pixel_values[0], theirs[n]["pixel_values"][0]) for n in range(8))
        sys.stdout.write(f"{options.images} JPEGs of {WIDTH} x {HEIGHT}; pixels bit-equal: {equal}\n")
        for workers in WORKERS:
            speeds: dict[str, list[float]] = {"neva": [], "processor": []}
            memory: list[float] = []
            for _ in range(options.rounds):
                for side, dataset in (("neva", ours), ("processor", theirs)):
                    speed, used = one_pass(dataset, workers)
                    speeds[side].append(speed)
                    memory = used if side == "neva" else memory
            medians = {side: statistics.median(values) for side, values in speeds.items()}
            quarters = ", ".join(f"{value:.0f}" for value in memory)
            sys.stdout.write(
                f"{workers} workers: neva {medians['neva']:.1f} images/s, processor {medians['processor']:.1f}, ratio "
                f"{medians['neva'] / medians['processor']:.2f}; a worker at the quarters: {quarters} MiB\n"
            )
    return 0 if equal else 1


if __name__ == "__main__":
    raise SystemExit(main())
