"""Small LLaVA `.nemo` files, as a training run writes them, with the real LLaMA tokenizer's shape in
miniature.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from tokenizers import Tokenizer, decoders, models, normalizers, processors
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from neva.convert.writers.hf_config import language_section, vision_section
from neva.families.language import language_config_from_hf
from neva.families.vision_reading import vision_config_from_hf
from neva.formats.json import write_json
from neva.formats.nemo import write_nemo
from tests.convert.native import native_model
from tests.convert.tiny import FAMILIES, RELATIVES, SIZES, language_model, scramble, tower

CHARACTERS = "".join(chr(code) for code in range(33, 127)) + "▁\n"


def write_tokenizer(folder: Path, vocab_size: int = 133) -> Path:
    """A character tokenizer built as LLaMA's is: `▁` before each text, bytes as a fallback, `<s>` first."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2}
    for character in CHARACTERS:
        vocabulary.setdefault(character, len(vocabulary))
    for number in range(vocab_size - len(vocabulary)):
        vocabulary[f"<0x{number + 0xC0:02X}>" if number < 30 else f"filler{number}"] = len(vocabulary)
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", fuse_unk=True, byte_fallback=False)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    roles = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
    write_json(
        folder / "tokenizer_config.json",
        {**roles, "tokenizer_class": "TokenizersBackend", "backend": "tokenizers"},
    )
    return folder


def image_processor(kind: str, size: int) -> dict[str, Any]:
    if kind == "clip":
        square = {"height": size, "width": size}
        return CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size=square).to_dict()
    return SiglipImageProcessorPil(size={"height": size, "width": size}).to_dict()


def llava_nemo(
    folder: Path,
    family: str = "llama",
    kind: str = "clip",
    *,
    dtype: torch.dtype = torch.float32,
    select_layer: int | tuple[int, ...] = -2,
    aspect_ratio: str = "square",
    template: str = "v1",
    system: str | None = None,
    input_size: int | None = None,
    tower_changes: dict[str, Any] | None = None,
    parts: tuple[str, ...] = ("language_model", "projector", "vision_tower"),
    changes: dict[str, Any] | None = None,
    pinpoints: list[list[int]] | None = None,
    connector: str | None = None,
) -> Path:
    """Writes a `.nemo` of random weights holding `parts`, and returns its path. Megatron's groups must be
    there.
    """
    config_class, _, family_changes = (FAMILIES | RELATIVES)[family]
    text = config_class(**{**SIZES, **family_changes, **(changes or {})}).to_dict()
    language = language_config_from_hf(text)
    vision = vision_config_from_hf(tower(kind).config.to_dict(), select_layer=select_layer)
    vision = replace(vision, **tower_changes or {})
    connector = connector or ("mlp2x_gelu_newline" if aspect_ratio.startswith("anyres") else "mlp2x_gelu")
    model = scramble(
        native_model(vision, replace(language, padded_vocab_size=language.vocab_size), connector), seed=3
    ).to(dtype)
    weights = [(name, tensor) for name, tensor in model.named_parameters() if name.startswith(parts)]
    path = folder / "model.nemo"
    tokenizer = write_tokenizer(folder / "tokenizer", language.vocab_size)
    section = model_section(language_section(language), vision_section(vision), aspect_ratio, template)
    section.data.system = system
    section.data.image_grid_pinpoints = pinpoints
    section.mm_cfg.mm_mlp_adapter_type = connector
    section.mm_cfg.vision_encoder.input_size = input_size
    processor = image_processor(kind, input_size or vision.image_size)
    write_nemo(path, section, weights, tokenizer, processor, "test", dict.fromkeys(parts, "trained"))
    return path


def model_section(
    language: dict[str, Any], vision: dict[str, Any], aspect_ratio: str, template: str
) -> DictConfig:
    return OmegaConf.create(
        {
            **{key: value for key, value in language.items() if key != "family"},
            "mm_cfg": {
                "llm": {"from_pretrained": None, "family": language.get("family")},
                "vision_encoder": {"from_pretrained": None, **vision},
                "mm_mlp_adapter_type": "mlp2x_gelu",
            },
            "data": {"image_aspect_ratio": aspect_ratio, "conv_template": template},
            "tokenizer": {"library": "huggingface", "type": None},
        }
    )


__all__ = ["language_model", "llava_nemo", "write_tokenizer"]
