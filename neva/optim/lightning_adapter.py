"""Any backend's optimizer as Lightning's step counter wants to see one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
from megatron.core.optimizer import OptimizerConfig

from neva.optim.offload import state_on_device
from neva.optim.schedule import CosineAnnealing


class GradientNotFinite(ArithmeticError):
    """The norm of the gradient is not finite; nothing has been updated."""

    def __init__(self, norm: float) -> None:
        super().__init__(f"gradient norm is {norm}")
        self.norm = norm


def require_finite(norm: float) -> float:
    """Returns a gradient norm; raises GradientNotFinite when it is none to update by."""
    if not math.isfinite(norm):
        raise GradientNotFinite(float(norm))
    return norm


class OptimizerProtocol(Protocol):
    """What a step asks of an optimizer, Megatron's or FSDP's."""

    config: OptimizerConfig

    @property
    def param_groups(self) -> list[dict[str, Any]]: ...

    def zero_grad(self, set_to_none: bool = True) -> None: ...

    def step(self) -> tuple[bool, float | None, Any]:
        """Returns whether it updated, the gradient norm before clipping, and what nobody reads.

        The norm is the same on every rank, with clipping and without. None of a step whose scaled gradients overflowed
        in float16, which is no error: the loss scale is lowered.

        Raises:
            GradientNotFinite: with nothing updated.
        """

    def get_loss_scale(self) -> torch.Tensor: ...


class LightningOptimizerAdapter(torch.optim.Optimizer):
    """An optimizer for Lightning's loop. The strategy saves its state, not Lightning.

    Args:
        inner: the optimizer that updates.
        schedule: learning rate of each step.
        offloaded_from: device of the update, where the state waits in CPU memory between steps.
    """

    def __init__(
        self, inner: OptimizerProtocol, schedule: CosineAnnealing, offloaded_from: torch.device | None = None
    ) -> None:
        # torch's constructor would refuse the empty list of a rank that trains nothing and copy all parameters
        self.inner = inner
        self.schedule = schedule
        self.state: dict[Any, Any] = {}  # type: ignore[assignment]
        self.defaults: dict[str, Any] = {}
        self.grad_norm = 0.0
        self.skips_next = False
        """Whether the next step is counted and changes nothing."""
        self.has_updated = self.is_finite = True
        """Of the last step that was not skipped: whether weights changed, and whether its gradient norm was finite."""
        self.offloaded_from = offloaded_from

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        return self.inner.param_groups

    def set_step(self, step: int) -> float:
        """Sets the learning rate of optimizer step `step` in every group and returns the base rate."""
        lr = self.schedule(step)
        for group in self.inner.param_groups:
            group["lr"] = lr * group["lr_mult"]
        return lr

    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        if closure is not None:
            closure()
        if self.skips_next:
            self.grad_norm = 0.0
            return
        try:
            with state_on_device(self.inner, self.offloaded_from):
                self.has_updated, grad_norm, _ = self.inner.step()
        except GradientNotFinite as error:
            self.has_updated = self.is_finite = False
            self.grad_norm = error.norm
            return
        self.is_finite = True
        self.grad_norm = float(grad_norm or 0.0)  # none of a step that overflowed and was skipped

    def loss_scale(self) -> dict[str, float]:
        """Returns the loss scale, as a metric; nothing where there is none."""
        return {"loss_scale": float(self.inner.get_loss_scale())} if self.inner.config.fp16 else {}

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.inner.zero_grad(set_to_none)
