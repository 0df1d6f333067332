"""One server process for all tests of this folder, on a free port, with a model that knows four colours."""

from __future__ import annotations

import base64
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import torch
from omegaconf import DictConfig
from openai import OpenAI

from neva.config.load import load
from neva.distributed import groups
from neva.inference.load import Assistant, load_assistant
from tests.conftest import random_image
from tests.training.conftest import COLOURS, colours  # noqa: F401
from tests.training.test_run import run as train

KEY = "secret"
LONGEST, PLACES, ROWS = 300, 32, 8
QUESTION = "what colour is this?"


@dataclass(frozen=True)
class Served:
    """Where a server is, and what it was started with."""

    url: str
    process: subprocess.Popen[str]
    images: Path
    allowed: Path

    def client(self, key: str = KEY) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=120)


@pytest.fixture(scope="session")
def nemo(tmp_path_factory: pytest.TempPathFactory, colours: list[str]) -> Path:  # noqa: F811
    """A model that has learnt its eight samples."""
    folder = tmp_path_factory.mktemp("served")
    run_dir = train(folder, [*colours, "model.optim.lr=5e-3", "model.global_batch_size=10"], steps=100)
    return next((run_dir / "checkpoints").glob("*.nemo"))


@pytest.fixture(scope="session")
def assistant(nemo: Path) -> Assistant:
    """The same model in this process."""
    device = groups.init_process_group(rank=0, world_size=1)
    groups.init_model_parallel(groups.ParallelSizes(), seed=1234)
    return load_assistant(str(nemo), device, torch.float32, None, None, None)


@pytest.fixture(scope="session")
def one_by_one(nemo: Path) -> DictConfig:
    """How answers are generated alone and greedily: an `inference` section."""
    cfg = load(
        "quickstart_inference", [f"neva_model_file={nemo}", "inference.batch_size=1", "inference.seed=0"]
    )
    return cfg.inference


@pytest.fixture(scope="session")
def served(
    nemo: Path,
    colours: list[str],  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Served]:
    """The server; when the tests are over, it is told to stop in the middle of an answer and has to finish that."""
    folder = tmp_path_factory.mktemp("media")
    images = Path(next(item.split("=")[1] for item in colours if "image_folder=" in item))
    (folder / "allowed").mkdir()
    (folder / "examples").mkdir()
    for number, name in enumerate(COLOURS):
        shutil.copy(images / f"{number}.png", folder / "examples" / f"{name}.png")
    shutil.copy(images / "0.png", folder / "allowed" / "red.png")
    shutil.copy(images / "0.png", folder / "outside.png")
    (folder / "allowed" / "link.png").symlink_to(folder / "outside.png")
    flags = [
        "--served-model-name", "tiny", "--api-key", KEY, "--max-tokens", str(LONGEST), "--max-num-seqs", str(ROWS),
        "--max-queue", str(PLACES - ROWS), "--max-images", "3", "--max-image-pixels", "5000", "--max-body-mib", "1",
        "--allowed-local-media-path", str(folder / "allowed"), "--allowed-media-domains", "127.0.0.1",
        "--page", "--examples", str(folder / "examples"),
    ]  # fmt: skip
    with server(nemo, folder / "log", flags) as (process, url):
        yield Served(url, process, images, folder / "allowed")
        _finishes_its_answers(process, url)
        assert "Traceback" not in (folder / "log").read_text()


@contextmanager
def server(
    model: Path, log: Path, flags: Sequence[str], trusted: ssl.SSLContext | bool = True
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process that answers, and where."""
    command = [
        sys.executable,
        "-m",
        "neva",
        "serve",
        str(model),
        "--port",
        "0",
        "--accelerator",
        "cpu",
        *flags,
    ]
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stderr=output, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
    try:
        yield process, _url(process, log, trusted)
    finally:
        process.kill()
        process.wait()


def _url(process: subprocess.Popen[str], log: Path, trusted: ssl.SSLContext | bool) -> str:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        if (found := re.search(r"answers at (\S+)/v1", log.read_text())) and _is_up(found[1], trusted):
            return found[1]
        time.sleep(0.1)
    raise AssertionError(log.read_text())


def _is_up(url: str, trusted: ssl.SSLContext | bool) -> bool:
    try:
        return httpx.get(f"{url}/health", verify=trusted).status_code == 200
    except httpx.TransportError:
        return False


def _finishes_its_answers(process: subprocess.Popen[str], url: str) -> None:
    client = OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0, timeout=120)
    stream = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": QUESTION}], stream=True, temperature=0,
        extra_body={"min_tokens": LONGEST},
    )  # fmt: skip
    next(iter(stream))
    process.send_signal(signal.SIGTERM)
    *_, last = stream
    assert last.choices[0].finish_reason == "length"
    client.close()
    assert process.wait(timeout=60) == 0


def data_uri(path: Path) -> str:
    """An image as clients send it."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def noise(folder: Path, width: int, height: int) -> Path:
    """An image of so many pixels."""
    path = folder / f"{width}x{height}.png"
    random_image(width, height).save(path)
    return path
