"""The losses that keep a router from sending every token to the same experts.

For a group of tokens it is E * sum_i f_i P_i, with f_i the share of the choices that fell on expert i and P_i the mean
probability of expert i (https://arxiv.org/abs/2101.03961): 1 where all experts serve alike. The gradient flows through
P. A z-loss, the mean square of the log of the softmax's denominator, keeps logits small
(https://arxiv.org/abs/2202.08906).

A group is a sample, so that neither the micro batch nor the layout changes the loss (`seq_aux_loss`, as in
https://arxiv.org/abs/2405.04434), or a micro batch (`aux_loss`, as in Megatron). It weighs as much as the group's label
tokens do in the loss of the model: each label token brings, besides its own loss, the balance loss of its group in
every layer. Padding belongs to no group.

Dimensions: T tokens of this rank, E experts, G groups of the micro batch, B rows, S positions of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.distributed import ProcessGroup

from neva.constants import IGNORE_INDEX, LOAD_BALANCING, Z_LOSS
from neva.model.context import positions, sample_numbers

BY_SAMPLE, BY_MICRO_BATCH, UNBALANCED = "seq_aux_loss", "aux_loss", "none"
"""Megatron's names of the groups."""


@dataclass(frozen=True)
class TokenGroups:
    """Which tokens are balanced together, and how much that weighs."""

    group_T: Tensor
    """int64: number of the group of each token of this rank in the order of the layer's input; G for padding."""
    lengths_G: Tensor
    """float32: tokens of each group, on all ranks that share the micro batch."""
    weights_G: Tensor
    """float32: what the label tokens of each group weigh together in the loss of the model."""


def router_coefficients(config: TransformerConfig) -> dict[str, float]:
    """Returns what the losses of routers weigh, by name; none without experts, and of those that are not asked for."""
    if config.num_moe_experts is None:
        return {}
    weights = {LOAD_BALANCING: config.moe_aux_loss_coeff, Z_LOSS: config.moe_z_loss_coeff}
    return {name: weight for name, weight in weights.items() if weight}


def token_groups(
    labels_BS: Tensor,
    sample_lengths: Sequence[Sequence[int]],
    label_weight: float,
    config: TransformerConfig,
    ranks: ProcessGroupCollection,
) -> TokenGroups:
    """Returns the groups of a micro batch.

    Args:
        labels_BS: targets of the whole rows, `IGNORE_INDEX` where there is no loss.
        sample_lengths: tokens of each sample in each row; none: a row is one sample.
        label_weight: of one label token in the loss of the model.
        config: says whether samples or the micro batch are groups, and whether tensor-parallel ranks share tokens.
        ranks: that share the rows.
    """
    rows, length = labels_BS.shape
    lengths = sample_lengths or [[length]] * rows
    number, group_BS = sum(map(len, lengths)), sample_numbers(lengths, length)
    if config.moe_router_load_balancing_type == BY_MICRO_BATCH:
        group_BS = (group_BS == number).long()
        number = 1
    group_BS = group_BS.to(labels_BS.device, non_blocking=True)
    return TokenGroups(
        group_T=_of_this_rank(group_BS, config, ranks),
        lengths_G=_summed(torch.ones_like(group_BS, dtype=torch.float32), group_BS, number).clamp(min=1),
        weights_G=_summed((labels_BS != IGNORE_INDEX).float(), group_BS, number) * label_weight,
    )


def _of_this_rank(group_BS: Tensor, config: TransformerConfig, ranks: ProcessGroupCollection) -> Tensor:
    """Returns the groups of the tokens that a layer of this rank sees, column by column."""
    shard = positions(group_BS.size(1), ranks.cp, group_BS.device)
    group_SB = (group_BS if shard is None else group_BS[:, shard]).t()
    if config.sequence_parallel:
        group_SB = group_SB.chunk(ranks.tp.size())[ranks.tp.rank()]
    return group_SB.flatten()


def losses_of_layer(
    logits_TE: Tensor,
    is_chosen_TE: Tensor,
    groups: TokenGroups,
    config: TransformerConfig,
    ranks: ProcessGroup,
) -> dict[str, Tensor]:
    """Returns this rank's parts of the losses of one layer, whose sums over `ranks` are the whole.

    By name, before their coefficients.

    Args:
        logits_TE: of the router.
        is_chosen_TE: which experts each token goes to.
        groups: which tokens belong together.
        config: says which losses are asked for.
        ranks: tensor- and context-parallel ranks, which share the tokens.
    """
    asked, found = router_coefficients(config), {}
    group_T, number = groups.group_T, len(groups.lengths_G)
    if LOAD_BALANCING in asked:
        counts_GE = _summed(is_chosen_TE.to(logits_TE.dtype), group_T, number)
        dist.all_reduce(counts_GE, group=ranks)
        probabilities_GE = _summed(logits_TE.softmax(-1), group_T, number)
        experts_per_choice = logits_TE.size(1) / config.moe_router_topk
        of_groups = (counts_GE * probabilities_GE).sum(1) * experts_per_choice / groups.lengths_G**2
        found[LOAD_BALANCING] = (of_groups * groups.weights_G).sum()
    if Z_LOSS in asked:
        squares_G = _summed(logits_TE.logsumexp(-1).square(), group_T, number)
        found[Z_LOSS] = (squares_G / groups.lengths_G * groups.weights_G).sum()
    return found


def _summed(values: Tensor, group: Tensor, number: int) -> Tensor:
    """Returns the sums [G, …] of the values of each group; those of padding, number `number`, are dropped."""
    flat = values.flatten(0, group.dim() - 1)
    sums = flat.new_zeros((number + 1, *flat.shape[1:]))
    return sums.index_add(0, group.flatten(), flat)[:number]
