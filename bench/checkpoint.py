"""What checkpoints cost: how long a save holds training up, and how long a run that starts again is without a step.

A save of `--gigabytes` is timed as the run makes it, in turns at once and in the background; beside those in the
background a product of matrices is timed, which stands for training. The restarts are of `neva train`: from the command
to the end of its first step behind a checkpoint, for the quickstart's shape and for a model whose checkpoint has
`--gigabytes`. Everything is written below `--folder`, and removed.

    python -m bench.checkpoint [--gigabytes 1.0] [--rounds 3] [--folder /data]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

from neva.checkpoint import store

TENSORS = 48
WORDS = ["<unk>", "<s>", "</s>", "<pad>", "USER", "ASSISTANT", ":", "what", "is", "this", "?", "grey"]
HIDDEN, FFN, BYTES = 768, 2048, 12
"""Of the larger model; bytes of a trained float32 parameter in a checkpoint, with Adam's two moments."""


def seconds(action: Callable[[], None]) -> float:
    """Returns how long `action` takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def saves(folder: Path, gigabytes: float, rounds: int) -> None:
    """Prints how long a save holds training up, at once and in the background."""
    from megatron.core.dist_checkpointing import ShardedTensor

    from neva.distributed import groups

    groups.init_process_group(rank=0, world_size=1)
    tensors = {str(number): torch.rand(int(gigabytes * 1e9 / 4 / TENSORS)) for number in range(TENSORS)}
    background = store.BackgroundSaves(600)
    matrix = torch.rand(1024, 1024)

    def product() -> None:
        torch.mm(matrix, matrix)

    alone = statistics.median(seconds(product) for _ in range(20))
    sync, stall, whole, beside = [], [], [], []
    for _ in range(rounds + 1):
        state = {name: ShardedTensor.from_rank_offsets(name, tensor) for name, tensor in tensors.items()}
        start = time.perf_counter()
        store.save(folder / "sync", dict(state), {})
        sync.append(time.perf_counter() - start)
        start = time.perf_counter()
        background.save(folder / "async", state, {})
        stall.append(time.perf_counter() - start)
        while background.thread is not None and background.thread.is_alive():
            beside.append(seconds(product))
        whole.append(time.perf_counter() - start)
        if (error := background.finished()) is not None:
            raise error
    first, stall = stall[0], stall[1:]
    size = sum(path.stat().st_size for path in (folder / "sync").iterdir())
    usual, held = statistics.median(sync[1:]), statistics.median(stall)
    print(f"checkpoint of {size / 1e9:.2f} GB, median of {rounds}, after one that is not counted")
    print(f"at once            training stands {usual:.3f} s")
    print(
        f"in the background  training stands {held:.3f} s ({held / usual:.1%}; the first {first:.3f} s), ",
        end="",
    )
    print(f"written after {statistics.median(whole[1:]):.2f} s; a step meanwhile takes ", end="")
    print(f"{statistics.mean(beside) / alone:.2f} times as long")


def prepare(folder: Path) -> list[str]:
    """Writes a tokenizer and eight records; returns the overrides that train on them."""
    tokenizer = Tokenizer(
        models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(WORDS[:4])
    (folder / "tokenizer").mkdir()
    tokenizer.save(str(folder / "tokenizer" / "tokenizer.json"))
    Image.new("RGB", (64, 64), "grey").save(folder / "grey.png")
    turns = [{"from": "human", "value": "<image>\nwhat is this?"}, {"from": "gpt", "value": "grey"}]
    records = [{"id": str(number), "image": "grey.png", "conversations": turns} for number in range(8)]
    (folder / "data.json").write_text(json.dumps(records))
    return [
        f"model.tokenizer.type={folder}/tokenizer",
        f"model.data.data_path={folder}/data.json",
        f"model.data.image_folder={folder}",
        "model.restore_from_path=null",
        "model.micro_batch_size=4",
        "model.global_batch_size=4",
        "exp_manager.checkpoint_callback_params.save_nemo_on_train_end=false",
        f"exp_manager.exp_dir={folder}/runs",
    ]


def restart(overrides: list[str], name: str) -> tuple[float, float, int]:
    """Returns the seconds to the first step from nothing and behind a checkpoint, and the bytes of that."""
    taken = []
    for last in (1, 2):
        command = [sys.executable, "-m", "neva", "train", "--config-name", "quickstart_finetune", *overrides]
        began = time.time()
        subprocess.run(
            [*command, f"exp_manager.name={name}", f"trainer.max_steps={last}"],
            check=True,
            capture_output=True,
        )
        folder = Path(overrides[-1].partition("=")[2]) / name
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        taken.append(rows[-1]["time_s"] - began)
    (newest,) = (folder / "checkpoints").glob("*-last")
    return taken[0], taken[1], sum(os.path.getsize(path) for path in newest.iterdir())


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        overrides = prepare(folder)
        layers = max(1, round(arguments.gigabytes * 1e9 / BYTES / (4 * HIDDEN**2 + 3 * HIDDEN * FFN)))
        larger = [f"model.num_layers={layers}", f"model.hidden_size={HIDDEN}", f"model.ffn_hidden_size={FFN}"]
        larger += ["model.num_attention_heads=12", "model.num_query_groups=12"]
        for title, shape in (("the quickstart's shape", []), (f"{layers} layers of width {HIDDEN}", larger)):
            fresh, resumed, size = restart([*shape, *overrides], title.replace(" ", "_").replace("'", ""))
            print(
                f"{title}, checkpoint of {size / 1e6:,.1f} MB: first step after {fresh:.1f} s from nothing, ",
                end="",
            )
            print(f"{resumed:.1f} s behind the checkpoint")
        saves(folder, arguments.gigabytes, arguments.rounds)


if __name__ == "__main__":
    main()
