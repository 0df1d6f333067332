"""From configurations and switches to a `NevaModel`."""

from __future__ import annotations

from collections.abc import Collection

import torch
from megatron.core.transformer.transformer_config import TransformerConfig

from neva.constants import ADAPTERS, ALL_PARTS, part_of
from neva.families.configs import LanguageConfig, VisionConfig
from neva.families.connector import connector_named
from neva.model.decoder_spec import transformer_config
from neva.model.hugging_face import HuggingFaceLanguageModel
from neva.model.language import LanguageModel
from neva.model.llava import AnyLanguageModel, NevaModel
from neva.model.vision import VisionTower


def build_model(
    vision: VisionConfig,
    language: LanguageConfig,
    adapter_type: str,
    config: TransformerConfig | None = None,
    pre_process: bool = True,
    post_process: bool = True,
    virtual_stage: int | None = None,
) -> NevaModel:
    """Builds one pipeline stage, or one virtual stage of it, with freshly drawn weights.

    Args:
        vision, language: sizes from the resolved configuration.
        adapter_type: kind of connector, such as `mlp2x_gelu`.
        config: Megatron's configuration; None means float32 on one process.
        pre_process, post_process: whether this is the first and the last stage.
        virtual_stage: number of the virtual stage, where a rank holds several.

    Returns:
        The model on the default device (enter `torch.device("meta")` to count without memory), everything trainable
        but what the forward pass does not use.
    """
    config = config or transformer_config(language)
    connector = connector_named(adapter_type)
    tower, second = (
        VisionTower(sizes, connector.has_thumbnail) if pre_process and sizes is not None else None
        for sizes in (vision, vision.second)
    )
    projector = connector.build(vision.feature_size, language.hidden_size) if pre_process else None
    for part in (tower, second, projector):
        if part is not None:
            part.to(config.params_dtype)
    language_model = build_language_model(language, config, pre_process, post_process, virtual_stage)
    model = NevaModel(language_model, tower, projector, second)
    set_trainable(model, ALL_PARTS)
    return model


def build_language_model(
    language: LanguageConfig,
    config: TransformerConfig | None = None,
    pre_process: bool = True,
    post_process: bool = True,
    virtual_stage: int | None = None,
) -> AnyLanguageModel:
    """Builds the language model of one pipeline stage; see `build_model`."""
    config = config or transformer_config(language)
    if language.hf_config is not None:
        return HuggingFaceLanguageModel(config, language)
    return LanguageModel(config, language, pre_process, post_process, virtual_stage)


def set_trainable(model: NevaModel, trained: Collection[str]) -> None:
    """Lets the parts named `trained` train, and freezes the others; adapters are a part of their own.

    Parameters that the forward pass does not use (tower layers behind the selected one) never train.
    """
    for name, part in model.parts():
        part.requires_grad_(False)
        used = part.used_parameters() if isinstance(part, VisionTower) else part.parameters()
        for parameter in used:
            parameter.requires_grad_(name in trained)
    for name, parameter in model.named_parameters():
        if part_of(name) == ADAPTERS:
            parameter.requires_grad_(ADAPTERS in trained)


def count_parameters(*models: NevaModel) -> dict[str, tuple[int, int]]:
    """Returns (all, trainable) parameter counts by part, over all virtual stages of a rank."""
    counts: dict[str, tuple[int, int]] = {}
    for name, parameter in (pair for model in models for pair in model.named_parameters()):
        total, trained = counts.get(part := part_of(name), (0, 0))
        counts[part] = (total + parameter.numel(), trained + parameter.numel() * parameter.requires_grad)
    return {part: counts[part] for part in ALL_PARTS if part in counts}


def meta_model(vision: VisionConfig, language: LanguageConfig, adapter_type: str) -> NevaModel:
    """Builds the model without memory, to count and to name its tensors."""
    config = transformer_config(language, perform_initialization=False)
    with torch.device("meta"):
        return build_model(vision, language, adapter_type, config)
