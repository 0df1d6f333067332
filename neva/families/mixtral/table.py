"""Tensors of mixtures of experts: in Megatron's layer, and under the names of transformers' families.

transformers 4 and the hub store each expert's matrices alone; transformers 5 has them in memory, and in files written
with `save_original_format=False`, as one tensor of all experts (`neva.weights.experts` takes those apart).
"""

from __future__ import annotations

from dataclasses import dataclass

from neva.families.configs import ExpertsConfig, LanguageConfig
from neva.families.decoder_rules import GatedMLP
from neva.families.llama.sizes import layer_shapes
from neva.families.mapping import Rename, Rule, Shape

EXPERTS = "mlp.experts.local_experts."
"""Prefix of the experts in a layer of Megatron, by number."""

SHARED = "mlp.shared_experts."


@dataclass(frozen=True)
class ExpertNames:
    """What a family calls the parts of a layer with experts; matrices in the order gate, up, down."""

    router: str
    experts: str
    matrices: tuple[str, str, str]
    shared: str | None = None
    shared_gate: str | None = None

    def rules(self, language: LanguageConfig, hf: str, native: str) -> list[Rule]:
        """Returns the rules of one layer; `hf` and `native` are its prefixes."""
        experts, hidden = experts_of(language), language.hidden_size
        rules: list[Rule] = [
            Rename(f"{hf}{self.router}.weight", f"{native}mlp.router.weight", (experts.number, hidden))
        ]
        for number in range(experts.number):
            rules += self._matrices(
                f"{hf}{self.experts}.{number}.",
                f"{native}{EXPERTS}{number}.",
                (experts.ffn_hidden_size, hidden),
            )
        if experts.shared_ffn_hidden_size is not None:
            shape = (experts.shared_ffn_hidden_size, hidden)
            rules += self._matrices(f"{hf}{self.shared}.", f"{native}{SHARED}", shape)
            rules.append(
                Rename(f"{hf}{self.shared_gate}.weight", f"{native}{SHARED}gate_weight", (1, hidden))
            )
        return rules

    def _matrices(self, hf: str, native: str, shape: Shape) -> list[Rule]:
        gate, up, down = (f"{hf}{name}.weight" for name in self.matrices)
        return [
            GatedMLP((gate, up), f"{native}linear_fc1.weight", shape),
            Rename(down, f"{native}linear_fc2.weight", (shape[1], shape[0])),
        ]


MIXTRAL_NAMES = ExpertNames("block_sparse_moe.gate", "block_sparse_moe.experts", ("w1", "w3", "w2"))

QWEN_NAMES = ExpertNames(
    "mlp.gate",
    "mlp.experts",
    ("gate_proj", "up_proj", "down_proj"),
    shared="mlp.shared_expert",
    shared_gate="mlp.shared_expert_gate",
)


def experts_of(language: LanguageConfig) -> ExpertsConfig:
    """Returns the experts of a model that has some."""
    assert language.experts is not None
    return language.experts


def expert_layer_shapes(language: LanguageConfig, tensor_parallel_size: int = 1) -> dict[str, Shape]:
    """Returns names and shapes of one layer with all experts on a tensor-parallel rank, in the module's order."""
    shapes = {
        name: shape
        for name, shape in layer_shapes(language, tensor_parallel_size).items()
        if not name.startswith("mlp.")
    }
    experts, hidden = experts_of(language), language.hidden_size

    def matrices(prefix: str, width: int) -> dict[str, Shape]:
        inner = width // tensor_parallel_size
        return {
            f"{prefix}linear_fc1.weight": (2 * inner, hidden),
            f"{prefix}linear_fc2.weight": (hidden, inner),
        }

    shapes["mlp.router.weight"] = (experts.number, hidden)
    for number in range(experts.number):
        shapes |= matrices(f"{EXPERTS}{number}.", experts.ffn_hidden_size)
    if experts.shared_ffn_hidden_size is not None:
        shapes[f"{SHARED}gate_weight"] = (1, hidden)
        shapes |= matrices(SHARED, experts.shared_ffn_hidden_size)
    return shapes
