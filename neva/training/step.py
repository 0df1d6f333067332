"""One global batch through Megatron's schedule: forward, backward, and a loss that no split of the batch changes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from neva.data.batch import Batch
from neva.model.balance import router_coefficients
from neva.model.context import positions
from neva.model.experts import taken_losses


class SourceLoss(NamedTuple):
    """Losses of one source of a mixture, summed over its label tokens."""

    loss_sum: float
    num_label_tokens: int

    @classmethod
    def total(cls, losses: Iterable[SourceLoss]) -> SourceLoss:
        """Returns several of one source as one."""
        return cls(*(sum(each) for each in zip(*losses, strict=True)))


@dataclass(frozen=True)
class StepLoss:
    """Losses of the global batch, summed over its label tokens or its micro batches, and what is in it.

    Equal on every rank.
    """

    loss_sum: float
    num_terms: int
    num_label_tokens: int
    num_samples: int = 0
    num_positions: int = 0
    """Padding counted."""
    num_tokens: int = 0
    num_image_tokens: int = 0
    load_balancing_sum: float = 0.0
    """What balances experts, a mean over layers, before its coefficient; 0 where that is, and without a gradient."""
    z_sum: float = 0.0
    """The same of the z-loss."""
    by_source: tuple[SourceLoss, ...] = ()
    """By the number of the source; none where the sources were not counted."""

    @property
    def mean(self) -> float:
        """Loss per label token, or per micro batch; 0 for a batch without labels."""
        return self.loss_sum / max(1, self.num_terms)

    @property
    def load_balancing_loss(self) -> float:
        """Per label token, or per micro batch, as `mean`: 1 where all experts serve alike."""
        return self.load_balancing_sum / max(1, self.num_terms)

    @property
    def z_loss(self) -> float:
        """Per label token, or per micro batch, as `mean`."""
        return self.z_sum / max(1, self.num_terms)

    @classmethod
    def total(cls, losses: Sequence[StepLoss]) -> StepLoss:
        """Returns the losses of several global batches, one at least, as those of one."""
        sums = {
            field.name: sum(getattr(loss, field.name) for loss in losses)
            for field in fields(cls)
            if field.name != "by_source"
        }
        of_each = zip(*(loss.by_source for loss in losses), strict=True)
        by_source = tuple(SourceLoss.total(of_source) for of_source in of_each)
        return cls(**sums, by_source=by_source)


def run_global_batch(
    chunks: list[MegatronModule],
    batch: list[Batch],
    device: torch.device,
    forward_only: bool = False,
    loss_average: Literal["token", "micro_batch"] = "token",
    num_sources: int = 0,
) -> StepLoss:
    """Runs this rank's share of a global batch, micro batch by micro batch.

    Gradients are summed over micro batches and data-parallel ranks and divided once, by the number of label tokens in
    the whole global batch: the result does not depend on micro batch size, accumulation or data-parallel size.

    Args:
        chunks: wrapped model chunks of this rank.
        batch: micro batches as `neva.data.collate` makes them.
        device: where they are moved to.
        forward_only: no backward pass (validation).
        loss_average: `micro_batch` averages within each micro batch first, as NeVA, Megatron-VLM and others do: a label
            token then weighs the more the fewer its micro batch has, and the result depends on the split.
        num_sources: of the mixture whose sources are counted apart; 0: they are not. Their sums travel with those that
            every step adds up anyway, so that they cost no message of their own.
    """
    losses = get_forward_backward_func()(
        forward_step_func=partial(
            _forward_step, device=device, loss_average=loss_average, sources=num_sources
        ),
        data_iterator=[iter(batch) for _ in chunks] if len(chunks) > 1 else iter(batch),
        model=chunks,
        num_microbatches=len(batch),
        seq_length=batch[0].input_ids.shape[1],
        micro_batch_size=batch[0].input_ids.shape[0],
        forward_only=forward_only,
    )
    total = torch.zeros(9 + 2 * num_sources, dtype=torch.float64, device=device)
    for reported in losses:  # only the last pipeline stage has any
        total[6:] += reported
    config = chunks[0].config
    if router_coefficients(config):  # every stage, and every shard of a sequence, has its part
        for place, part in enumerate(taken_losses(chunks), 4):
            total[place] = part / config.num_layers
        dist.all_reduce(total[4:6], group=parallel_state.get_tensor_model_parallel_group())
    if losses and parallel_state.get_context_parallel_rank() == 0:
        total[:4] = torch.tensor(_counts(batch), dtype=torch.float64)
    dist.all_reduce(total, group=parallel_state.get_data_parallel_group(with_context_parallel=True))
    dist.all_reduce(total, group=parallel_state.get_pipeline_model_parallel_group())
    summed = total.tolist()
    num_samples, num_positions, num_tokens, num_image_tokens = map(int, summed[:4])
    return StepLoss(
        loss_sum=summed[6],
        num_terms=int(summed[7]),
        num_label_tokens=int(summed[8]),
        num_samples=num_samples,
        num_positions=num_positions,
        num_tokens=num_tokens,
        num_image_tokens=num_image_tokens,
        load_balancing_sum=summed[4],
        z_sum=summed[5],
        by_source=tuple(map(SourceLoss, summed[9::2], map(int, summed[10::2]))),
    )


@contextmanager
def evaluating(chunks: Sequence[MegatronModule]) -> Iterator[None]:
    """Switches dropout and recomputation off, and gives every module its mode back, as frozen parts have their own."""
    modules = [module for chunk in chunks for module in chunk.modules()]
    modes = [module.training for module in modules]
    for chunk in chunks:
        chunk.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for chunk in chunks:
            chunk.train()
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode


def _counts(batch: list[Batch]) -> list[int]:
    """Returns samples, positions, tokens and image tokens of this rank's share."""
    return [
        sum(len(micro.record_ids) for micro in batch),
        sum(micro.input_ids.numel() for micro in batch),
        sum(micro.num_tokens for micro in batch),
        sum(micro.num_image_tokens for micro in batch),
    ]


def _forward_step(
    data: Iterator[Batch], model: MegatronModule, device: torch.device, loss_average: str, sources: int
) -> Any:
    micro, loss_of, label_weight = next(data), LOSSES[loss_average], 1.0
    if loss_average == "micro_batch":
        label_weight /= max(1, micro.num_labels)
    if sources:
        # where the labels lie already: no wait for a device
        shard = positions(
            micro.labels.shape[1], parallel_state.get_context_parallel_group(), micro.labels.device
        )
        loss_of = partial(_with_sources, loss_of, sources, micro.label_sources(shard))
    # of labels that lie here: no wait for a device
    prefix_lengths, first_label = micro.prefix_lengths, micro.first_label
    micro = micro.to(device)
    losses_L = model(
        micro.input_ids,
        micro.pixel_values,
        labels=micro.labels,
        feature_order=micro.feature_order,
        sample_lengths=micro.packed_lengths,
        pictures=micro.pictures,
        token_lengths=micro.sample_lengths,
        label_weight=label_weight,
        prefix_lengths=prefix_lengths,
        first_label=first_label,
    )
    return losses_L, loss_of


def _sum_of_tokens(losses_L: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns what Megatron's schedule asks for: the summed loss, the number of its terms, and what to report."""
    # reported in double: a sum over a whole data set does not depend on how it was cut
    return _reported(losses_L.sum(), losses_L.numel(), losses_L, losses_L.detach().double().sum())


def _mean_of_micro_batch(losses_L: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the same with the micro batch as one term."""
    mean = losses_L.sum() / max(1, losses_L.numel())
    return _reported(mean, 1, losses_L, mean.detach().double())


def _reported(loss: Tensor, terms: int, losses_L: Tensor, shown: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    num_terms = torch.tensor(terms, dtype=torch.int, device=losses_L.device)
    report = [shown, num_terms.double(), num_terms.new_tensor(losses_L.numel()).double()]
    return loss, num_terms, torch.stack(report)


def _with_sources(
    loss_of: Any, number: int, sources_L: Tensor, losses_L: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns what `loss_of` does, and behind what it reports loss and label tokens of each source."""
    loss, terms, report = loss_of(losses_L)
    is_of_KL = (torch.arange(number)[:, None] == sources_L).to(losses_L.device, non_blocking=True)
    # no product: a loss that is not finite is its own source's alone
    loss_sum_K = torch.where(is_of_KL, losses_L.detach().double(), 0.0).sum(1)
    sums = torch.stack([loss_sum_K, is_of_KL.sum(1)], dim=1)
    return loss, terms, torch.cat([report, sums.flatten()])


LOSSES = {"token": _sum_of_tokens, "micro_batch": _mean_of_micro_batch}
"""How the loss of a micro batch enters that of the global batch."""
