"""The same model, weights and batch on GPU and CPU in float32, and on the GPU in bf16: loss and gradients."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.gpu.shapes import batches, recipe
from bench.gpu.sheet import Sheet
from bench.gpu.training import TrainedModel, random_model, start
from neva.distributed import groups

SIZES = {
    "model__encoder_seq_length": 128,
    "model__num_layers": 4,
    "model__hidden_size": 512,
    "model__ffn_hidden_size": 1376,
    "model__num_attention_heads": 8,
    "model__vocab_size": 4096,
    "model__mm_cfg__vision_encoder__image_size": 112,
    "model__mm_cfg__vision_encoder__hidden_size": 256,
    "model__mm_cfg__vision_encoder__num_layers": 4,
    "model__mm_cfg__vision_encoder__num_attention_heads": 4,
    "model__mm_cfg__vision_encoder__ffn_hidden_size": 1024,
    "model__mm_cfg__vision_encoder__freeze": False,
    "model__mm_cfg__vision_encoder__vision_encoder_lr_ratio": 1.0,
    "model__micro_batch_size": 2,
    "model__global_batch_size": 4,
}
LOSS_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-4
BF16_TOLERANCE = 1e-2
ROUNDING = 1e-5


def agreement(sheet: Sheet) -> None:
    """Rows of differences relative to the CPU's numbers; a process without GPUs computes those."""
    reference = cpu_values(sheet)
    ours = values_of("32", sheet.tiny)
    with sheet.row("float32, GPU against CPU") as row:
        row["initial weights"] = "equal" if ours["weights"] == reference["weights"] else "differ"
        row["loss"] = f"{ours['loss']:.7f}, {reference['loss']:.7f}"
        row["loss difference"] = f"{relative_loss(ours, reference):.1e}"
        worst, name = worst_gradient(ours["gradients"], reference["gradients"])
        row["largest gradient difference"] = f"{worst:.1e} ({name})"
        row["tolerances"] = f"{LOSS_TOLERANCE:.0e}, {GRADIENT_TOLERANCE:.0e}"
        row["agrees"] = relative_loss(ours, reference) <= LOSS_TOLERANCE and worst <= GRADIENT_TOLERANCE
    with sheet.row("bf16 on the GPU against float32 on the CPU") as row:
        half = values_of("bf16", sheet.tiny)
        row["loss"] = f"{half['loss']:.7f}, {reference['loss']:.7f}"
        row["loss difference"] = f"{relative_loss(half, reference):.1e}"
        row["tolerances"] = f"{BF16_TOLERANCE:.0e}"
        row["agrees"] = relative_loss(half, reference) <= BF16_TOLERANCE


def cpu_values(sheet: Sheet) -> dict[str, Any]:
    """Returns `values_of` in float32 from a process that sees no GPU."""
    path = sheet.folder / "cpu_values.pt"
    call = [sys.executable, "-m", "bench.gpu.parts.agreement", str(path), "tiny" if sheet.tiny else "whole"]
    subprocess.run(call, check=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, timeout=120)
    return torch.load(path, weights_only=True)


def values_of(precision: str, tiny: bool) -> dict[str, Any]:
    """Returns the loss, a number that the initial weights determine, and the gradients by parameter, on the CPU."""
    sizes = {
        key: value for key, value in SIZES.items() if not tiny or "vision_encoder_lr" in key or "batch" in key
    }
    cfg = recipe("llava_7b_finetune", tiny, trainer__precision=precision, **sizes)
    device = start(cfg)
    try:
        model = random_model(cfg, device, drawn_on_device=False)
        weights = sum(float(parameter.detach().cpu().double().sum()) for parameter in model.parameters())
        trained = TrainedModel(cfg, [model], device)
        loss = trained.step(batches(cfg), update=False).mean
        named = model.named_parameters()
        gradients = {name: gradient_of(value) for name, value in named if value.requires_grad}
        return {"loss": loss, "weights": weights, "gradients": gradients}
    finally:
        groups.destroy()


def gradient_of(parameter: Any) -> Tensor:
    """Returns the gradient in Megatron's float32 buffer."""
    gradient: Tensor = parameter.main_grad
    return gradient.detach().float().cpu().clone()


def relative_loss(ours: dict[str, Any], reference: dict[str, Any]) -> float:
    """Returns the difference of two losses as a share of the second."""
    return abs(float(ours["loss"]) - float(reference["loss"])) / float(reference["loss"])


def worst_gradient(ours: dict[str, Tensor], reference: dict[str, Tensor]) -> tuple[float, str]:
    """Returns the largest norm of a difference as a share of the tensor's own, and the tensor's name.

    A norm below ROUNDING of the largest one counts as that: a key's bias adds the same to all scores of a query, so
    that its gradient is zero and what stands there is rounding.
    """
    norms = {name: float(expected.norm()) for name, expected in reference.items()}
    least = ROUNDING * max(norms.values())
    found = {
        name: float((ours[name] - reference[name]).norm()) / max(norm, least) for name, norm in norms.items()
    }
    name = max(found, key=lambda name: found[name])
    return found[name], name


if __name__ == "__main__":
    torch.save(values_of("32", sys.argv[2] == "tiny"), Path(sys.argv[1]))
