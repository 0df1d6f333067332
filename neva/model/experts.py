"""Feed-forward layers of several experts, of which a router chooses some for each token: Megatron's, from any layout's
same weights, with a loss that balances the experts sample by sample.

Every token goes to its experts: none is dropped, whatever their load. Under expert parallel each rank holds some of
the experts, and tokens travel to them and back.

Dimensions: T tokens of this rank (of its shard of the sequence), E experts, D hidden, k experts of a token.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.dist_checkpointing.utils import replace_prefix_for_sharding
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.moe.experts import SequentialMLP
from megatron.core.transformer.moe.moe_layer import MoELayer, MoESubmodules
from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler
from megatron.core.transformer.moe.router import TopKRouter
from megatron.core.transformer.moe.shared_experts import SharedExpertMLP
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.utils import ensure_metadata_has_dp_cp_group
from megatron.core.utils import get_pg_rank
from torch import Tensor, nn

from neva.constants import LOAD_BALANCING, Z_LOSS
from neva.families.configs import LanguageConfig
from neva.model.balance import TokenGroups, losses_of_layer, router_coefficients
from neva.model.seeding import SeededLayer, seed_for


def experts_spec() -> ModuleSpec:
    """Returns the layer for Megatron's slot `mlp`."""
    matrices = MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear)
    return ModuleSpec(
        module=MoELayer,
        submodules=MoESubmodules(
            router=Router,
            experts=ModuleSpec(module=Experts, submodules=matrices),
            shared_experts=ModuleSpec(module=SharedExpert, submodules=matrices),
        ),
    )


def expert_fields(language: LanguageConfig) -> dict[str, object]:
    """Returns the fields of Megatron's configuration that describe the experts; none where there are none."""
    experts = language.experts
    if experts is None:
        return {}
    return {
        "num_moe_experts": experts.number,
        "moe_router_topk": experts.per_token,
        "moe_ffn_hidden_size": experts.ffn_hidden_size,
        "moe_router_pre_softmax": experts.pre_softmax,
        "moe_shared_expert_intermediate_size": experts.shared_ffn_hidden_size,
        "moe_shared_expert_gate": experts.shared_ffn_hidden_size is not None,
        "moe_token_dispatcher_type": "alltoall",
    }


class ExpertLayer(SeededLayer):
    """A decoder layer with experts, whose router is told which token belongs to which sample."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.mlp.router.groups = getattr(kwargs.get("packed_seq_params"), "groups", None)
        return super().forward(*args, **kwargs)


class Router(TopKRouter):
    """Chooses k experts for each token, in float32 at least."""

    groups: TokenGroups | None = None
    """Which tokens are balanced together; None: no loss is added."""
    shown: dict[str, Tensor]
    """This rank's parts of the losses that balance them, since they were last taken, before their coefficients."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.shown = {}

    def gating(self, input: Tensor) -> Tensor:
        """Returns logits [s, B, E]; Megatron's own product needs Transformer Engine."""
        return F.linear(input, self.weight)

    def routing(self, logits: Tensor, padding_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Returns how much each expert weighs for each token, [T, E], 0 for those not chosen, and which are chosen."""
        logits_TE = logits.flatten(0, -2)
        logits_TE = logits_TE.to(torch.promote_types(logits_TE.dtype, torch.float32))
        weights_Tk, experts_Tk = choose(logits_TE, self.topk, self.config.moe_router_pre_softmax)
        weights_TE = torch.zeros_like(logits_TE).scatter(1, experts_Tk, weights_Tk)
        is_chosen_TE = torch.zeros(logits_TE.shape, dtype=torch.bool, device=experts_Tk.device)
        is_chosen_TE.scatter_(1, experts_Tk, True)
        if self.groups is not None and torch.is_grad_enabled():
            losses = losses_of_layer(logits_TE, is_chosen_TE, self.groups, self.config, self.tp_cp_group)
            for name, weight in router_coefficients(self.config).items():
                # once a step: a forward pass that is to be computed again runs without gradients
                self.shown[name] = self.shown.get(name, 0.0) + losses[name].detach().double()
                weights_TE = MoEAuxLossAutoScaler.apply(weights_TE, weight * losses[name])
        return weights_TE, is_chosen_TE


def taken_losses(models: Iterable[nn.Module]) -> list[Tensor | float]:
    """Returns the sums of this rank's parts of balance and z-loss over its layers since this was last asked."""
    routers = [module for model in models for module in model.modules() if isinstance(module, Router)]
    return [
        sum((router.shown.pop(name, 0.0) for router in routers), 0.0) for name in (LOAD_BALANCING, Z_LOSS)
    ]


def choose(logits_TE: Tensor, topk: int, pre_softmax: bool) -> tuple[Tensor, Tensor]:
    """Returns what each of the k experts with the highest logits weighs, and their numbers, [T, k] both.

    Weights are probabilities among all experts (`pre_softmax`) or among the chosen.
    """
    chosen_Tk, experts_Tk = logits_TE.topk(topk, dim=-1)
    if pre_softmax:
        return logits_TE.softmax(-1).gather(1, experts_Tk), experts_Tk
    return chosen_Tk.softmax(-1), experts_Tk


class Experts(SequentialMLP):
    """The experts of this rank, each from weights of its own seed and stored under its number in the whole model."""

    def __init__(
        self,
        num_local_experts: int,
        config: TransformerConfig,
        submodules: MLPSubmodules,
        pg_collection: ProcessGroupCollection,
    ) -> None:
        super().__init__(0, config, submodules, pg_collection)
        self.num_local_experts = num_local_experts
        self.first = get_pg_rank(self.ep_group) * num_local_experts
        """Number of the first of them in the whole model."""
        of_layer = torch.initial_seed()
        for number in range(self.first, self.first + num_local_experts):
            seed_for(of_layer, f"experts.{number}")
            expert = MLP(
                self.config,
                submodules,
                ffn_hidden_size=config.moe_ffn_hidden_size,
                is_expert=True,
                tp_group=pg_collection.expt_tp,
            )
            self.local_experts.append(expert)
        seed_for(of_layer, "experts.shared")  # what is drawn next must not follow from which experts are here

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: Any = None
    ) -> Mapping[str, Any]:
        """Returns the sharded tensors, an expert's under the name that it has where one rank holds all.

        Megatron would join the experts of a layer into one tensor, of which a `.nemo` could not be made.
        """
        metadata = ensure_metadata_has_dp_cp_group(metadata)
        state: dict[str, Any] = {}
        for number, expert in enumerate(self.local_experts):
            here, everywhere = (f"{prefix}local_experts.{n}." for n in (number, self.first + number))
            tensors = expert.sharded_state_dict(here, sharded_offsets, metadata)
            replace_prefix_for_sharding(tensors, here, everywhere)
            for tensor in tensors.values():  # copies are those of the ranks that hold the same experts
                tensor.replica_id = (*tensor.replica_id[:2], get_pg_rank(self.dp_group))
            state |= tensors
        return state


class SharedExpert(SharedExpertMLP):
    """The expert that every token passes."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        with warnings.catch_warnings():
            # Megatron's class takes its width from a configuration of its own, which its base class remarks on
            warnings.simplefilter("ignore", DeprecationWarning)
            super().__init__(*arguments, **named)
