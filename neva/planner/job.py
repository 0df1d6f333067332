"""What is trained on which GPUs, as the planner needs it."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import DictConfig

from neva.config.language import language_config_of
from neva.config.media import media_rules_of
from neva.config.parts import trained_parts
from neva.config.samples import row_length
from neva.config.tower import vision_config_of
from neva.planner.flops import StepWork
from neva.planner.tensors import ModelSpec

UNIFORM, ONE_LAYER = "uniform", 1
"""Full recomputation where the recipe does not say how: each layer from its input, which needs least memory."""


LABEL_SHARE = 0.5
"""Share of positions with a loss, where it is not given."""


@dataclass(frozen=True)
class Job:
    """A model, its batches and the GPUs.

    `tiles_per_image`: the most that an image becomes. `recompute_method`, `recompute_layers`: of full recomputation.
    `averages_weights`: a moving average of the weights lies on the GPUs.
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
    averages_weights: bool

    @property
    def work(self) -> StepWork:
        """What a global batch of full samples computes."""
        samples, vision = self.global_batch_size, self.model.vision
        tiles = samples * self.images_per_sample * self.tiles_per_image
        return StepWork(
            samples={self.sequence_length: samples},
            labels=samples * self.sequence_length * self.label_share,
            tiles={(vision.side // vision.patch_size) ** 2: tiles},
        )


def model_spec(model_cfg: DictConfig) -> ModelSpec:
    """Returns what a resolved `model` section builds and trains."""
    return ModelSpec(
        vision_config_of(model_cfg),
        language_config_of(model_cfg),
        model_cfg.mm_cfg.mm_mlp_adapter_type,
        model_cfg.make_vocab_size_divisible_by,
        trained_parts(model_cfg),
    )


def recomputed_share(model_cfg: DictConfig) -> float:
    """Returns the share of the layers that full recomputation is for."""
    if model_cfg.activations_checkpoint_method != "block":
        return 1.0
    chunks = model_cfg.pipeline_model_parallel_size * (model_cfg.virtual_pipeline_model_parallel_size or 1)
    layers = chunks * (model_cfg.activations_checkpoint_num_layers or ONE_LAYER)
    return min(1.0, float(layers) / model_cfg.num_layers)


def job_of(cfg: DictConfig, gpus: int, gpus_per_node: int, images: int, label_share: float) -> Job:
    """Returns what a resolved recipe trains."""
    model, ema = cfg.model, cfg.exp_manager.ema
    return Job(
        model=model_spec(model),
        precision=str(cfg.trainer.precision),
        micro_batch_size=model.micro_batch_size,
        global_batch_size=model.global_batch_size,
        sequence_length=row_length(model),
        images_per_sample=images,
        tiles_per_image=media_rules_of(model, vision_config_of(model)).most_squares,
        label_share=label_share,
        recompute_method=model.activations_checkpoint_method or UNIFORM,
        recompute_layers=model.activations_checkpoint_num_layers or ONE_LAYER,
        gpus=gpus,
        gpus_per_node=gpus_per_node,
        averages_weights=ema.enable and not ema.cpu_offload,
    )
