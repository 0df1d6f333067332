"""The weights that a training run starts from."""

from __future__ import annotations

from dataclasses import replace

from omegaconf import DictConfig

from neva.config.language import language_config_of
from neva.constants import ADAPTERS
from neva.formats.nemo import open_nemo
from neva.model.adapted import fill_magnitudes
from neva.model.llava import NevaModel
from neva.weights.fingerprint import check_base
from neva.weights.load import load_parts
from neva.weights.resolve import Origin, resolve_weights


def load_initial_weights(model: NevaModel, model_cfg: DictConfig) -> dict[str, Origin]:
    """Fills the parts for which a resolved `model` section names weights; the others keep their random ones.

    Returns:
        The origin of each part.

    Raises:
        CheckpointError: weights that do not fit a part completely.
    """
    origins = resolve_weights(model_cfg)
    found = load_parts(model, origins, language_config_of(model_cfg))
    if (adapters := origins.get(ADAPTERS)) is not None and adapters.path is not None:
        check_base(open_nemo(adapters.path).manifest, found, origins, adapters)
    else:
        fill_magnitudes(model)
    return {part: replace(origin, fingerprint=found.get(part)) for part, origin in origins.items()}
