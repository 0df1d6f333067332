"""What a `.nemo` records beside weights, for models that come from Hugging Face folders."""

from __future__ import annotations

from dataclasses import replace

from omegaconf import DictConfig, OmegaConf, open_dict

from neva.config.compose import compose
from neva.config.derive_language import language_keys
from neva.convert.writers.hf_config import language_section, vision_section
from neva.errors import ConfigError
from neva.families.configs import LanguageConfig, VisionConfig
from neva.families.language import backend_of
from neva.families.media_tokens import tokens_per_image
from neva.registry import TEMPLATES
from neva.templates.template import template_names


def model_section(
    language: LanguageConfig,
    vision: VisionConfig,
    adapter_type: str,
    template: str,
    aspect_ratio: str,
    system: str | None = None,
) -> DictConfig:
    """Returns a complete `model` section for these sizes: what they do not say is what the fine-tuning recipe says.

    `system` None is the template's own system prompt.

    Raises:
        ConfigError: there is no such template.
    """
    if template not in TEMPLATES:
        raise ConfigError(f"conv_template is {template!r}, expected one of {', '.join(template_names())}")
    recipe = compose("llava_7b_finetune", [])
    with open_dict(recipe.model):  # these are keys that few models have
        recipe.model.merge_with(
            {
                **language_section(replace(language, family=None, hf_config=None)),
                "language_backend": backend_of(language),
                "mm_cfg": {
                    "llm": {"from_pretrained": None, **language_keys(language)},
                    "vision_encoder": {"from_pretrained": None, **vision_section(vision)},
                    "mm_mlp_adapter_type": adapter_type,
                    "use_image_tile": vision.image_tiles,
                    "pretrain_mm_mlp_adapter": None,
                },
                "data": {"conv_template": template, "system": system, "image_aspect_ratio": aspect_ratio},
            }
        )
    section = OmegaConf.create(OmegaConf.to_container(recipe, resolve=True)).model
    tokens = tokens_per_image(vision, adapter_type)
    side = [vision.image_side, vision.image_side]
    section.data.merge_with({"image_token_len": tokens, "crop_size": side, "image_size": side})
    section.mm_cfg.vision_encoder.crop_size = [vision.image_size, vision.image_size]
    return section
