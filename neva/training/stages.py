"""The pipeline stages of a model that this rank builds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig

from neva.config.language import language_config_of
from neva.config.tower import vision_config_of
from neva.distributed import groups
from neva.model.build import build_model
from neva.model.decoder_spec import transformer_config
from neva.model.llava import NevaModel
from neva.training.megatron_switches import megatron_switches


def built_stages(model_cfg: DictConfig, **switches: Any) -> Iterator[NevaModel]:
    """Builds the stages, or virtual stages, that this rank holds, each when it is asked for, on the default device.

    Args:
        model_cfg: the resolved `model` section.
        switches: fields of Megatron's configuration beside those that the section chooses.
    """
    language = language_config_of(model_cfg)
    config = transformer_config(language, **switches, **megatron_switches(model_cfg))
    for stage in groups.pipeline_stages():
        yield build_model(
            vision_config_of(model_cfg),
            language,
            model_cfg.mm_cfg.mm_mlp_adapter_type,
            config,
            stage.is_first,
            stage.is_last,
            stage.virtual,
        )
