"""`model.optim.*`: optimizer and learning rate schedule."""

from __future__ import annotations

from dataclasses import dataclass

from neva.config.keys.field import key, section

DISTRIBUTED_OPTIMIZERS = ("distributed_fused_adam", "mcore_distributed_optim")


@dataclass
class Sched:
    """Learning rate over the steps."""

    name: str = key("Warmup, then a cosine from lr to min_lr.", choices=("CosineAnnealing",))
    warmup_steps: int = key("Steps of linear warmup.", low=0, common=True)
    constant_steps: int = key("Steps at min_lr at the end.", low=0)
    min_lr: float = key("Learning rate at the end.", low=0)


@dataclass
class Optim:
    """AdamW."""

    name: str = key("AdamW of megatron-core.", choices=("fused_adam", *DISTRIBUTED_OPTIMIZERS))
    cpu_offload: bool = key("Main weights and Adam's state wait in CPU memory between steps (16 bits).")
    lr: float = key("Peak learning rate.", above=0, common=True)
    weight_decay: float = key("Decoupled weight decay of the matrices.", low=0, common=True)
    betas: list[float] = key("Decay rates of Adam's two moments.", low=0, below=1, length=2)
    sched: Sched = section()
