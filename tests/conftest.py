"""What all tests share: thread limits, the real files beside the project, small images and conversation records."""

import os

# Before torch is imported: the suite runs several processes at once.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import json
import resource
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image

REPOSITORY = Path(__file__).resolve().parent.parent
SEVERAL_PROCESSES = "tests/distributed/"
LONGEST = ("distributed", "training", "convert", "examples", "launchers", "inference", "model")
"""Rooms whose tests train, convert or answer, which takes seconds, while others take milliseconds."""

# The same examples in every run: a failure is the change's, not the draw's.
settings.register_profile("neva", deadline=None, derandomize=True, database=None)
settings.load_profile("neva")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest begins first, or a core would wait at the end for the last file of another."""
    tests = REPOSITORY / "tests"
    place = {room: number for number, room in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.relative_to(tests).parts[0], len(place)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Under `--dist loadfile`, tests of several processes one after another, beside files of the others.

    Their ranks often wait for each other, so that one more process keeps the cores busy, while two such tests at once
    would crawl.
    """
    from xdist.scheduler import LoadFileScheduling

    class OneAtATime(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            is_of_several = nodeid.startswith(SEVERAL_PROCESSES)
            return SEVERAL_PROCESSES if is_of_several else super()._split_scope(nodeid)

    return OneAtATime(config, log) if config.getoption("dist") == "loadfile" else None


def shared_data(*parts: str) -> Path:
    """A real file or folder of `../shared/data`; the test that asks for one that is absent is skipped."""
    path = REPOSITORY.parent.joinpath("shared", "data", *parts)
    if not path.exists():
        pytest.skip(f"needs the real data at {path}")
    return path


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Sums in one order, and no fight over the cores between processes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="session")
def left_groups() -> Iterator[None]:
    """Gloo aborts in its destructor when a process ends inside a group."""
    yield
    if "neva.distributed.groups" in sys.modules:
        sys.modules["neva.distributed.groups"].destroy()


def processor_s() -> float:
    """Processor time of finished child processes, which other work on a busy machine does not lengthen."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def random_image(width: int, height: int, seed: int = 0) -> Image.Image:
    """Noise in RGB: no pixel equals its neighbour, so a shift by one shows."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def conversation(*texts: str) -> list[dict[str, str]]:
    """LLaVA's `conversations`: the texts of human and gpt in turn."""
    return [{"from": ("human", "gpt")[number % 2], "value": text} for number, text in enumerate(texts)]


def image_record(number: int, *texts: str) -> dict[str, Any]:
    """A LLaVA record whose image is `<number>.png`."""
    return {"id": f"id-{number}", "image": f"{number}.png", "conversations": conversation(*texts)}


def write_records(path: Path, records: Sequence[Any]) -> Path:
    """Writes `.json` or `.jsonl`, by the name of `path`."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    else:
        path.write_text(json.dumps(records, ensure_ascii=False, indent=1), encoding="utf-8")
    return path
