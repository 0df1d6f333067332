"""A training run without Lightning around it: the model, the backend and the optimizer that `neva train` builds."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from omegaconf import DictConfig

from neva.config.parts import trained_parts
from neva.data.batch import Batch
from neva.distributed import groups
from neva.distributed.backend import backend_for
from neva.model.build import set_trainable
from neva.model.layers import prepare_layers
from neva.model.llava import NevaModel
from neva.optim.lightning_adapter import LightningOptimizerAdapter
from neva.optim.schedule import schedule_of
from neva.precision import set_matmul_precision
from neva.training.stages import built_stages
from neva.training.step import StepLoss, run_global_batch


def start(cfg: DictConfig) -> torch.device:
    """Joins a process group of one and returns the device."""
    set_matmul_precision(cfg.trainer.precision)
    device = groups.init_process_group(rank=0, world_size=1)
    groups.init_model_parallel(groups.ParallelSizes(), cfg.model.seed)
    return device


def random_model(cfg: DictConfig, device: torch.device, drawn_on_device: bool = True) -> NevaModel:
    """Builds the model on `device`; weights of the language model drawn there are there sooner than from the CPU."""
    (model,) = built_stages(cfg.model, perform_initialization=not drawn_on_device)
    model = model.to(device)
    if drawn_on_device:
        for parameter in model.language_model.parameters():
            is_matrix = parameter.dim() > 1
            parameter.data.normal_(0.0, cfg.model.init_method_std) if is_matrix else parameter.data.fill_(1.0)
    set_trainable(model, trained_parts(cfg.model))
    return model.train()


class TrainedModel:
    """The pieces of a model that this rank holds, with their optimizer; `step` is one of `MegatronNevaModel`."""

    def __init__(self, cfg: DictConfig, models: Sequence[NevaModel], device: torch.device) -> None:
        self.cfg, self.device = cfg, device
        prepare_layers(models, cfg.model)
        self.backend = backend_for(cfg.model, node_ranks=cfg.trainer.devices)
        self.chunks = self.backend.wrap(models, device)
        optim = cfg.model.optim
        schedule = schedule_of(optim, max_steps=1000)
        inner = self.backend.build_optimizer(self.chunks, cfg.model, cfg.trainer.gradient_clip_val)
        self.optimizer = LightningOptimizerAdapter(inner, schedule, device if optim.cpu_offload else None)
        self.steps = 0

    def step(self, batch: Sequence[Batch], update: bool = True) -> StepLoss:
        """Takes one step; without `update` it ends when the gradients are there."""
        for chunk in self.chunks:
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()
        average = self.cfg.model.loss_average
        loss = run_global_batch(self.chunks, list(batch), self.device, loss_average=average)
        if update:
            self.optimizer.set_step(self.steps)
            self.optimizer.step()
            self.steps += 1
        return loss


def synchronize(device: torch.device) -> None:
    """Waits for the GPU, where there is one."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def timed(action: Any, device: torch.device) -> float:
    """Returns the seconds that `action` takes on the device."""
    synchronize(device)
    begin = time.perf_counter()
    action()
    synchronize(device)
    return time.perf_counter() - begin
