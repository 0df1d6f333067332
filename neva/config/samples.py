"""How a resolved `model` section has samples written: template, system prompt, tags around images, longest row."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf

from neva.config.plain import plain

IMAGE_TAGS: dict[str | None, tuple[str, str]] = {
    None: ("<im_start>", "<im_end>"),
    **dict.fromkeys(("nvgpt", "llama_2", "v1", "mistral"), ("<extra_id_4>", "<extra_id_5>")),
    "llama_3": ("<|reserved_special_token_4|>", "<|reserved_special_token_5|>"),
    "idefics2": ("<fake_token_around_image>", "<fake_token_around_image>"),
}
"""`mm_cfg.llm.model_type` -> the tokens around an image: NeVA's by language model, Idefics2's, LLaVA's without one."""


def image_tags_of(model_cfg: DictConfig) -> tuple[str, str] | None:
    """Returns the tokens around an image, None where `use_im_start_end` is off, as in older models."""
    if not OmegaConf.select(model_cfg, "mm_cfg.use_im_start_end"):
        return None
    return IMAGE_TAGS[OmegaConf.select(model_cfg, "mm_cfg.llm.model_type")]


def system_prompt_of(model_cfg: DictConfig) -> str | None:
    """Returns the system prompt of conversations that bring none; None: the template's own.

    Models that were recorded before there was such a key have the template's own.
    """
    return OmegaConf.select(model_cfg, "data.system")


def own_template_of(model_cfg: DictConfig) -> dict[str, Any] | None:
    """Returns `data.template`, None where there is none, as in older models."""
    own: dict[str, Any] | None = plain(OmegaConf.select(model_cfg, "data.template"))
    return own


def row_length(model_cfg: DictConfig) -> int:
    """Returns the positions of a full row of a micro batch: of the longest sample, or of a pack."""
    data: DictConfig = model_cfg.data
    longest: int = (
        data.packed_length if data.packed_sequence and data.packed_length else model_cfg.encoder_seq_length
    )
    return longest
