"""Which kernels ran: attention by name in tower and language model, and what takes the time of a step."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from bench.gpu.parts.generation import prompts_of, run
from bench.gpu.shapes import batches, recipe
from bench.gpu.sheet import Sheet
from bench.gpu.training import TrainedModel, random_model, start, synchronize

ATTENTION = re.compile(r"flash|fmha|attention|attn|sdpa", re.IGNORECASE)
SHOWN, LONGEST = 8, 110


def kernels(sheet: Sheet) -> None:
    """A row each for the tower, the language model, a decoding batch, and the largest shares of a step."""
    cfg = recipe(
        "llava_7b_finetune",
        sheet.tiny,
        model__num_layers=4,
        model__micro_batch_size=4,
        model__global_batch_size=4,
    )
    device = start(cfg)
    model = random_model(cfg, device)
    trained = TrainedModel(cfg, [model], device)
    batch = batches(cfg)
    trained.step(batch)
    pixels, tower = batch[0].pixel_values.to(device), cast(nn.Module, model.vision_tower)
    with sheet.row("attention of the tower, forward") as row, torch.no_grad():
        row["names"] = attention(profiled(lambda: tower(pixels), device))
    with sheet.row("attention of a training step, tower and language model") as row:
        events = profiled(lambda: trained.step(batch), device)
        row["names"] = attention(events)
    with sheet.row("largest shares of the step's time") as row:
        row["names"] = largest(events)
    with sheet.row("attention while generating, prompts of different lengths") as row:
        model.eval()
        prompts = prompts_of(cfg, batch=2, ragged=True)
        row["names"] = attention(profiled(lambda: run(model, prompts, 4, device), device))


def profiled(action: Callable[[], Any], device: torch.device) -> dict[str, float]:
    """Returns the names that the profiler saw with their microseconds; on a GPU those of kernels, 0 for the rest."""
    is_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_gpu else [])]) as seen:
        action()
        synchronize(device)
    found: dict[str, float] = {}
    for event in seen.key_averages():
        is_kernel = event.device_type == DeviceType.CUDA
        own = event.self_device_time_total if is_kernel else 0.0 if is_gpu else event.self_cpu_time_total
        found[event.key] = found.get(event.key, 0.0) + float(own)
    return found


def attention(events: dict[str, float]) -> str:
    """Returns the names of attention operations and kernels, kernels and what takes longest first."""
    names = sorted((name for name in events if ATTENTION.search(name)), key=lambda name: -events[name])
    return "; ".join(short(name) for name in names[:SHOWN]) or "none by that name"


def largest(events: dict[str, float]) -> str:
    """Returns the largest shares of the time."""
    total = sum(events.values()) or 1.0
    ranked = sorted(events.items(), key=lambda item: -item[1])[:SHOWN]
    return "; ".join(f"{short(name)} {spent / total:.0%}" for name, spent in ranked)


def short(name: str) -> str:
    """Returns the beginning of a name, a kernel's template arguments having hundreds of characters."""
    return name.replace("|", "/")[:LONGEST]
