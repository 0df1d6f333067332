"""The GPU report on a CPU, at tiny sizes: parts run, a broken one costs its row, the documentation's page stays."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bench.gpu.page import MISSING, page
from bench.gpu.shapes import recipe
from bench.gpu.sheet import Row, Sheet, read
from neva.planner.flops import step_flops, total
from neva.planner.job import job_of

ROOT = Path(__file__).resolve().parent.parent.parent
REPORT = ROOT / "bench/gpu_report.py"


def report(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPORT), "--folder", str(folder), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=900)


def test_a_part_that_fails_costs_its_row_and_not_the_report(tmp_path: Path) -> None:
    before = (ROOT / "docs/gpu.md").read_bytes()
    (tmp_path / "datasets").write_text("where `quickstart` wants a folder")
    done = report(tmp_path, "--tiny", "--parts", "quickstart,sft_none", "--patience", "5", "--limit", "600")
    assert done.returncode == 0, done.stderr
    failed, step = read(tmp_path / "gpu_report_rows.jsonl")
    assert str(failed.values["result"]).startswith("failed: NotADirectoryError")
    assert "Traceback" in (tmp_path / "gpu_report_log.txt").read_text()
    assert float(step.values["step s"]) > 0 and step.values["MFU"] == "-"
    written = (tmp_path / "gpu.md").read_text()
    assert "failed: NotADirectoryError" in written and step.name in written and MISSING in written
    assert (ROOT / "docs/gpu.md").read_bytes() == before


def test_without_a_gpu_nothing_but_tiny_sizes_is_measured(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = report(tmp_path)
    assert done.returncode == 2 and "add --tiny" in done.stderr


def test_a_row_that_fails_says_why_in_one_line(tmp_path: Path) -> None:
    sheet = Sheet("kernels", tmp_path / "rows", tmp_path, tiny=True)
    with sheet.row("one") as row:
        row["figure"] = 1
        raise RuntimeError("first | line\nsecond line")
    (found,) = read(sheet.path)
    assert found.values["result"] == "failed: RuntimeError: first | line"
    assert "| one | 1 | failed: RuntimeError: first / line |" in page([found])
    assert page([Row("fsdp", "two", {"falls": False})]).count("**no**") == 1


def test_model_flops_are_those_of_a_hand_computation() -> None:
    cfg = recipe("llava_7b_finetune", tiny=False, model__micro_batch_size=1, model__global_batch_size=1)
    # 6 FLOPs a parameter and token; LLaMA-7B has 6.476e9 parameters in its layers, 0.131e9 in its head
    layers = 6 * 6.476e9 * 2048
    head = 6 * 0.131e9 * 1024
    attention = 6 * 32 * 4096 * 2048 * 2048
    # CLIP-L: 23 of its layers of 12.6e6 parameters, and attention over 577 patches
    tower = 23 * (2 * 12.583e6 * 577 + 4 * 1024 * 577 * 577)
    projector = 6 * 20.97e6 * 576
    expected = layers + head + attention + tower + projector
    job = job_of(cfg, 1, 1, images=1, label_share=0.5)
    assert total(step_flops(job.model, job.work, None).values()).model == pytest.approx(expected, rel=2e-3)
