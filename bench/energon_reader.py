"""Megatron-energon's side of `bench/data.py`, run by the Python of an environment that has it.

    python bench/energon_reader.py SHARDS TOKENIZER COUNT

reads from standard input, line by line, with how many workers to make a pass over the shards, and answers each with a
line of JSON: images/s behind the first of each worker, processor time, and fingerprints of the pixels.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from megatron.energon import (
    Cooker,
    DefaultTaskEncoder,
    Sample,
    SampleDecoder,
    WorkerConfig,
    basic_sample_keys,
    get_loader,
    get_train_dataset,
    stateless,
)

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.processor_sample import fingerprint, processor_of, processor_time_s, tensors_of


@dataclass
class Conversation(Sample):
    """A record, and its image as Pillow decodes it."""

    image: Any
    record: dict[str, Any]


@stateless
def cook(sample: dict[str, Any]) -> Conversation:
    """Takes the parts of a sample in its tar."""
    return Conversation(**basic_sample_keys(sample), image=sample["jpg"], record=sample["json"])


class ProcessorEncoder(DefaultTaskEncoder):
    """Calls transformers' processor for each sample, in a worker."""

    decoder = SampleDecoder(image_decode="pilrgb")
    cookers = (Cooker(cook),)

    def __init__(self, tokenizer: Path) -> None:
        super().__init__()
        self.processor = processor_of(tokenizer)

    @stateless
    def encode_sample(self, sample: Conversation) -> Any:
        """Returns the processor's tensors."""
        return dict(tensors_of(self.processor, sample.record, sample.image))

    @stateless
    def batch(self, samples: list[Any]) -> Any:
        """Returns the one sample of a batch as it is: the other sides do not collate either."""
        return samples[0]


def one_pass(shards: Path, encoder: ProcessorEncoder, workers: int, count: int) -> dict[str, Any]:
    """Returns images/s behind the first of each worker, processor time an image, fingerprints of eight images."""
    config = WorkerConfig(rank=0, world_size=1, num_workers=workers)
    dataset = get_train_dataset(
        shards,
        worker_config=config,
        batch_size=1,
        shuffle_buffer_size=None,
        max_samples_per_sequence=None,
        task_encoder=encoder,
        repeat=False,
    )
    seen, started, pixels, before_s = 0, 0.0, [], processor_time_s()
    samples = iter(get_loader(dataset))
    for seen, sample in enumerate(samples, 1):
        if seen == workers:
            started = time.perf_counter()
        if seen <= 8:
            pixels.append(sample["pixel_values"][0])
    elapsed_s = time.perf_counter() - started
    assert seen == count, f"energon gave {seen} of {count} images"
    del samples  # its workers end
    return {
        "speed": (count - workers) / elapsed_s,
        "processor_ms": (processor_time_s() - before_s) / count * 1e3,
        "pixels": list(map(fingerprint, pixels)),
    }


def main() -> int:
    """Makes passes as long as numbers of workers come."""
    shards, tokenizer, count = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    encoder = ProcessorEncoder(tokenizer)
    for line in sys.stdin:
        sys.stdout.write(json.dumps(one_pass(shards, encoder, int(line), count)) + "\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
