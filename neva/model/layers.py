"""How the layers of a model that has its weights compute: packed, in 8 bits, compiled."""

from __future__ import annotations

from collections.abc import Iterable

from omegaconf import DictConfig

from neva.config.language import language_config_of
from neva.model.compiled import compile_layers
from neva.model.float8 import use_float8
from neva.model.llava import NevaModel
from neva.model.quantised import quantise_base


def prepare_layers(models: Iterable[NevaModel], model_cfg: DictConfig) -> None:
    """Has the layers of all pieces of a model compute as `model_cfg` says, before they are wrapped for data parallel.

    Raises:
        ConfigError: this machine lacks what is asked for.
    """
    language = language_config_of(model_cfg)
    for model in models:
        quantise_base([model], language)
        if model_cfg.fp8:
            use_float8(model, model_cfg.fp8_e4m3)
        if model_cfg.torch_compile:
            compile_layers(model)
