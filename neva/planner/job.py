"""What is trained on which GPUs, as the planner needs it."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import DictConfig

from neva.config.model_config import language_config_of, media_rules_of, row_length, vision_config_of
from neva.config.parts import trained_parts
from neva.planner.tensors import ModelSpec

UNIFORM, ONE_LAYER = "uniform", 1
"""Full recomputation where the recipe does not say how: each layer from its input, which needs least memory."""


LABEL_SHARE = 0.5
"""Share of positions with a loss, where it is not given."""


@dataclass(frozen=True)
class Job:
    """A model, its batches and the GPUs.

    `tiles_per_image`: the most that an image becomes. `recompute_method`, `recompute_layers`: of full recomputation.
    """

    model: ModelSpec
    precision: str
    micro_batch_size: int
    global_batch_size: int
    sequence_length: int
    images_per_sample: int
    tiles_per_image: int
    label_share: float
    recompute_method: str
    recompute_layers: int
    gpus: int
    gpus_per_node: int


def job_of(cfg: DictConfig, gpus: int, gpus_per_node: int, images: int, label_share: float) -> Job:
    """Returns what a resolved recipe trains."""
    model, mm_cfg = cfg.model, cfg.model.mm_cfg
    vision = vision_config_of(model)
    return Job(
        model=ModelSpec(
            vision,
            language_config_of(model),
            mm_cfg.mm_mlp_adapter_type,
            model.make_vocab_size_divisible_by,
            trained_parts(model),
        ),
        precision=str(cfg.trainer.precision),
        micro_batch_size=model.micro_batch_size,
        global_batch_size=model.global_batch_size,
        sequence_length=row_length(model),
        images_per_sample=images,
        tiles_per_image=media_rules_of(model, vision).most_squares,
        label_share=label_share,
        recompute_method=model.activations_checkpoint_method or UNIFORM,
        recompute_layers=model.activations_checkpoint_num_layers or ONE_LAYER,
        gpus=gpus,
        gpus_per_node=gpus_per_node,
    )
