"""How long a data set takes to open, and how much memory: a generated LLaVA-like `.json`, and a synthetic index.

python bench/data_index.py --records 665000 --folder /tmp/index-bench
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from neva.data.sources.json import JsonRecords, JsonSource

OPEN = """
import sys, time, psutil
from pathlib import Path
from neva.data.lengths import measure
from neva.data.sources.json import JsonSource
before = psutil.Process().memory_full_info().uss
start = time.perf_counter()
records = JsonSource().open(Path(sys.argv[1]))
records[0], records[len(records) - 1]
lengths = measure(records, 576)
print(f"{len(records):,} records: open {time.perf_counter() - start:.3f} s, of its own "
      f"{(psutil.Process().memory_full_info().uss - before) / 2**20:.1f} MiB")
"""


def main() -> None:
    """Writes the file, makes its index and opens it again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=665_000)
    parser.add_argument("--folder", type=Path, required=True, help="gets a file of 1.4 kB a record")
    parser.add_argument(
        "--synthetic", type=int, default=0, help="records of an index without a file, 17 bytes each"
    )
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    path = options.folder / f"{options.records}.json"
    if not path.exists():
        write_like_llava(path, options.records)
    start = time.perf_counter()
    JsonSource().open(path)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    elapsed_s = time.perf_counter() - start
    report(
        f"{path.stat().st_size / 2**30:.2f} GiB: index made or found in {elapsed_s:.1f} s, peak {peak:.0f} MiB"
    )
    subprocess.run([sys.executable, "-c", OPEN, str(path)], check=True)
    if options.synthetic:
        open_synthetic(path, options.folder / "synthetic", options.synthetic)


def write_like_llava(path: Path, count: int) -> None:
    """Writes records of one to nine questions and answers, 1.4 kB each on average."""
    draw = random.Random(0)
    words = [draw.randbytes(draw.randint(1, 4)).hex() for _ in range(2000)]
    with path.open("w") as file:
        for number in range(count):
            turns = []
            for turn in range(draw.randint(1, 9)):
                question, answer = (
                    " ".join(draw.choices(words, k=draw.randint(2, most))) for most in (12, 30)
                )
                turns += [
                    {"from": "human", "value": "<image>\n" * (turn == 0) + question},
                    {"from": "gpt", "value": answer},
                ]
            record = {
                "id": f"{number:012}",
                "image": f"coco/train2017/{number:012}.jpg",
                "conversations": turns,
            }
            file.write(("[" if number == 0 else ",\n") + json.dumps(record))
        file.write("]")


def open_synthetic(path: Path, folder: Path, count: int) -> None:
    """Opens arrays of `count` records, all of which lie where the first of `path` does."""
    folder.mkdir(exist_ok=True)
    kinds = {"starts": "q", "sizes": "I", "words": "i", "images": "H", "kinds": "B", "datasets": "H"}
    if not (folder / "starts.npy").exists():
        for name, code in kinds.items():
            array = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", code, (count,))
            array[:] = {"starts": 1, "sizes": 200, "words": 150, "images": 1, "kinds": 1}.get(name, 0)
    start = time.perf_counter()
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in kinds}
    records = JsonRecords(path, arrays, None)
    report(f"{len(records):,} records of a synthetic index: open {time.perf_counter() - start:.4f} s")


def report(line: str) -> None:
    """Prints a line."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
