"""The ways to keep state that only a GPU shows: NCCL, offloading to CPU memory, FSDP, float16's loss scale."""

from __future__ import annotations

import gc
import itertools
from typing import Any

import torch
import torch.distributed as dist

from bench.gpu.shapes import batches, recipe
from bench.gpu.sheet import Sheet, Value
from bench.gpu.training import TrainedModel, random_model, start
from neva.distributed import groups

STEPS = 4
FLOAT16_STEPS = 50
OVERFLOWING = 2.0**40
"""A first loss scale under which every gradient overflows; it halves until they fit."""


def megatron(sheet: Sheet) -> None:
    """Megatron's data parallel: as it is, sharded, with the optimizer's state in CPU memory, in float16."""
    with sheet.row("Megatron data parallel") as row:
        row.update(losses_of(sheet))
    with sheet.row("distributed optimizer") as row:
        row.update(losses_of(sheet, model__optim__name="distributed_fused_adam"))
    with sheet.row("optim.cpu_offload") as row:
        row.update(losses_of(sheet, model__optim__cpu_offload=True))
    with sheet.row("distributed optimizer, optim.cpu_offload") as row:
        row.update(
            losses_of(sheet, model__optim__cpu_offload=True, model__optim__name="distributed_fused_adam")
        )
    with sheet.row("float16, loss scale from 2^40") as row:
        row.update(float16(sheet))


def fsdp(sheet: Sheet) -> None:
    """FSDP on one rank, its shards on the GPU or in CPU memory."""
    with sheet.row("FSDP full") as row:
        row.update(losses_of(sheet, model__fsdp=True))
    with sheet.row("FSDP grad") as row:
        row.update(losses_of(sheet, model__fsdp=True, model__fsdp_sharding_strategy="grad"))
    with sheet.row("FSDP full, fsdp_cpu_offload") as row:
        row.update(losses_of(sheet, model__fsdp=True, model__fsdp_cpu_offload=True))


def losses_of(sheet: Sheet, **keys: Any) -> dict[str, Value]:
    """Takes a few steps on one batch; returns group, losses, whether they fall, and the peak of memory."""
    trained, batch, left = built(sheet, **keys)
    try:
        losses = [trained.step(batch).mean for _ in range(STEPS)]
        return {
            "process group": dist.get_backend(),
            "losses": " ".join(f"{loss:.4f}" for loss in losses),
            "loss falls": losses[-1] < losses[0],
            "peak GiB": peak(trained.device, left),
            "state on": state_device(trained.optimizer.inner),
        }
    finally:
        groups.destroy()


def float16(sheet: Sheet) -> dict[str, Value]:
    """Takes steps whose first gradients overflow."""
    keys = {"trainer__precision": 16, "model__native_amp_init_scale": OVERFLOWING, "model__hysteresis": 1}
    trained, batch, left = built(sheet, **keys)
    try:
        scales, losses = [], []
        for _ in range(FLOAT16_STEPS):
            losses.append(trained.step(batch).mean)
            scales.append(trained.optimizer.loss_scale()["loss_scale"])
        overflows = sum(later < scale for scale, later in itertools.pairwise(scales))
        return {
            "process group": dist.get_backend(),
            "losses": f"{losses[0]:.4f} … {losses[-1]:.4f}",
            "loss falls": losses[-1] < losses[0],
            "peak GiB": peak(trained.device, left),
            "result": f"scale {scales[0]:.3g} -> {scales[-1]:.3g}, {overflows} overflows",
            "scale falls": scales[-1] < scales[0],
        }
    finally:
        groups.destroy()


def built(sheet: Sheet, **keys: Any) -> tuple[TrainedModel, Any, int]:
    """Returns a model of one layer with its optimizer, a batch, and the bytes that earlier models left on the GPU."""
    left = 0
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        left = torch.cuda.memory_allocated()
    sizes = {
        "model__num_layers": 1,
        "model__encoder_seq_length": 1024,
        "model__micro_batch_size": 2,
        "model__global_batch_size": 4,
        "model__optim__lr": 1e-3 if sheet.tiny else 1e-4,
    }
    cfg = recipe("llava_7b_finetune", sheet.tiny, **sizes, **keys)
    device = start(cfg)
    return TrainedModel(cfg, [random_model(cfg, device)], device), batches(cfg), left


def peak(device: torch.device, left: int) -> float | str:
    """Returns the peak of GPU memory, without what was left there before."""
    return round((torch.cuda.max_memory_allocated() - left) / 2**30, 2) if device.type == "cuda" else "-"


def state_device(optimizer: Any) -> str:
    """Returns where the moments lie between two steps."""
    members = getattr(optimizer, "chained_optimizers", [optimizer])
    tensors = [values["exp_avg"] for member in members for values in member.optimizer.state.values()]
    return ", ".join(sorted({tensor.device.type for tensor in tensors}))
