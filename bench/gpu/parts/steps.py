"""Seconds, FLOP/s and memory of training steps at LLaVA-1.5 7B's widths."""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import Any

import torch

from bench.gpu.shapes import FULL, batches, recipe
from bench.gpu.sheet import Sheet
from bench.gpu.training import TrainedModel, random_model, start, timed
from neva.planner.candidates import layout_of
from neva.planner.devices import peak_flops
from neva.planner.estimate import estimate
from neva.planner.flops import step_flops, total
from neva.planner.job import Job, job_of
from neva.planner.report import GIB

SFT_LAYERS = 12
"""Of 32: 18 bytes a parameter in bf16, so that 80 GiB hold them with their activations."""
WARM_UP, MEASURED = 2, 8
WITHIN = 0.15
"""How far the planner may be from the peak."""


def sft_full(sheet: Sheet) -> None:
    """Stage 2, each layer recomputed from its input."""
    measure(sheet, "SFT, full recomputation", "llava_7b_finetune", SFT_LAYERS, 0.5, **FULL)


def sft_selective(sheet: Sheet) -> None:
    """Stage 2, attention recomputed."""
    keys = {"model.activations_checkpoint_granularity": "selective"}
    measure(sheet, "SFT, selective recomputation", "llava_7b_finetune", SFT_LAYERS, 0.5, **keys)


def sft_none(sheet: Sheet) -> None:
    """Stage 2, nothing recomputed."""
    measure(sheet, "SFT, no recomputation", "llava_7b_finetune", SFT_LAYERS, 0.5)


def sft_compiled(sheet: Sheet) -> None:
    """The same with compiled layers."""
    keys = {"model.torch_compile": True}
    measure(sheet, "SFT, no recomputation, compiled layers", "llava_7b_finetune", SFT_LAYERS, 0.5, **keys)


def sft_fp8(sheet: Sheet) -> None:
    """And with products in 8 bits, whose MFU is still told against the peak of 16."""
    keys = {"model.torch_compile": True, "model.fp8": True}
    measure(
        sheet, "SFT, no recomputation, compiled layers, fp8", "llava_7b_finetune", SFT_LAYERS, 0.5, **keys
    )


def projector(sheet: Sheet) -> None:
    """Stage 1 with all layers: the projector trains through the frozen language model."""
    keys = {"model.encoder_seq_length": 768}
    measure(sheet, "stage 1, projector alone", "llava_7b_pretrain", 32, 0.15, **keys)


def measure(sheet: Sheet, name: str, recipe_name: str, layers: int, label_share: float, **keys: Any) -> None:
    """Adds a row: two micro batches of four samples a step, with one image each."""
    sizes = {"model__num_layers": layers, "model__micro_batch_size": 4, "model__global_batch_size": 8}
    cfg = recipe(recipe_name, sheet.tiny, **sizes, **keys)
    title = (
        f"{name}, {cfg.model.num_layers} layers, sequence {cfg.model.encoder_seq_length}, micro batch 4 x 2"
    )
    with sheet.row(title) as row:
        device = start(cfg)
        trained = TrainedModel(cfg, [random_model(cfg, device)], device)
        batch = batches(cfg, label_share)
        for _ in range(WARM_UP):
            trained.step(batch)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds = statistics.median(timed(lambda: trained.step(batch), device) for _ in range(MEASURED))
        row["step s"] = round(seconds, 3)
        row["tokens/s"] = round(sum(micro.num_tokens for micro in batch) / seconds)
        job = job_of(cfg, 1, 1, 1, label_share)
        work = replace(job.work, unread={batch[0].first_label: job.global_batch_size})
        flops = total(step_flops(job.model, work, None).values()).model
        row["model TFLOP"] = round(flops / 1e12, 4 if sheet.tiny else 1)
        peak = peak_flops(torch.cuda.get_device_name() if device.type == "cuda" else "")
        row["MFU"] = "-" if peak is None else f"{flops / seconds / peak:.1%}"
        row.update(memory(cfg, job, device))


def memory(cfg: Any, job: Job, device: torch.device) -> dict[str, Any]:
    """Returns the peak beside what `neva plan` says for this layout."""
    planned = estimate(job, layout_of(cfg)).peak / GIB
    if device.type != "cuda":
        return {"peak GiB": "-", "plan GiB": round(planned, 3), "plan / peak": "-", "within 15 %": "-"}
    peak = torch.cuda.max_memory_allocated() / GIB
    return {
        "peak GiB": round(peak, 2),
        "plan GiB": round(planned, 2),
        "plan / peak": round(planned / peak, 3),
        "within 15 %": abs(planned / peak - 1) <= WITHIN,
    }
