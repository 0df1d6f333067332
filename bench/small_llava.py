"""The model that both sides of a comparison have: LLaVA's parts at a size that a laptop runs, with random weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from neva.families.configs import LanguageConfig, VisionConfig
from neva.model.llava import NevaModel

VOCAB = 32000
FULL_RECOMPUTATION = {
    "recompute_granularity": "full",
    "recompute_method": "uniform",
    "recompute_num_layers": 1,
}
IMAGE_ID = 1  # of transformers' image positions; no text uses it
VISION = VisionConfig(
    model_type="clip", image_size=112, patch_size=14, hidden_size=256, num_layers=4, num_heads=4,
    ffn_hidden_size=1024, hidden_act="quick_gelu", layer_norm_eps=1e-5, select_layer=-2, class_token_length=1,
)  # fmt: skip
LANGUAGE = LanguageConfig(
    num_layers=4, hidden_size=256, ffn_hidden_size=688, num_heads=8, num_query_groups=8, head_dim=32,
    vocab_size=VOCAB, padded_vocab_size=VOCAB, max_positions=2048, rope_theta=10000.0, rope_scaling=None,
    rms_norm_eps=1e-5, tied=False, qkv_bias=False, qk_norm=False, sliding_window=None,
)  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """A tower and a language model, joined by `mlp2x_gelu`."""

    vision: VisionConfig
    language: LanguageConfig


SMALL = Shape(VISION, LANGUAGE)
JOB = Shape(
    replace(VISION, image_size=336, num_layers=3),
    replace(LANGUAGE, hidden_size=512, ffn_hidden_size=1376, head_dim=64, vocab_size=4000, padded_vocab_size=4000),
)  # fmt: skip
"""An eighth of a LLaVA-1.5 7B in width and in depth: its 576 positions an image, its ratios of tower, width and
vocabulary."""


def random_llava(
    shape: Shape = SMALL, dtype: torch.dtype = torch.float32, recomputes: bool = False
) -> NevaModel:
    """Returns neva's model, alone in a process group of its own."""
    from neva.distributed import groups
    from neva.model.build import build_model
    from neva.model.decoder_spec import transformer_config

    groups.init_process_group(rank=0, world_size=1)
    groups.init_model_parallel(groups.ParallelSizes(), seed=1)
    switches = FULL_RECOMPUTATION if recomputes else {}
    config = transformer_config(shape.language, params_dtype=dtype, pipeline_dtype=dtype, **switches)
    return build_model(shape.vision, shape.language, "mlp2x_gelu", config)


def write_twin(model: NevaModel, folder: Path, shape: Shape = SMALL) -> None:
    """Writes the model as `LlavaForConditionalGeneration.from_pretrained` reads it."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    from neva.families.connector import projector_table
    from neva.families.language import language_table
    from neva.families.naming import LLAVA_HF
    from neva.families.vision_table import stored_tower, tower_shapes, tower_table

    vision, language = shape.vision, shape.language
    table = (
        language_table(language, LLAVA_HF)
        + tower_table(tower_shapes(vision, pooling_head=False), stored_tower(vision, LLAVA_HF))
        + projector_table("mlp2x_gelu", vision.hidden_size, language.hidden_size, LLAVA_HF)
    )
    weights = table.to_hf({name: parameter.detach().float() for name, parameter in model.named_parameters()})
    save_file({name: weight.contiguous() for name, weight in weights}, folder / "model.safetensors")
    LlavaConfig(
        vision_config=CLIPVisionConfig(
            image_size=vision.image_size, patch_size=vision.patch_size, hidden_size=vision.hidden_size,
            num_hidden_layers=vision.num_layers, num_attention_heads=vision.num_heads,
            intermediate_size=vision.ffn_hidden_size, layer_norm_eps=vision.layer_norm_eps,
        ),
        text_config=LlamaConfig(
            vocab_size=language.padded_vocab_size, hidden_size=language.hidden_size,
            intermediate_size=language.ffn_hidden_size, num_hidden_layers=language.num_layers,
            num_attention_heads=language.num_heads, rms_norm_eps=language.rms_norm_eps,
        ),
        image_token_index=IMAGE_ID,
        architectures=["LlavaForConditionalGeneration"],
    ).save_pretrained(folder)  # fmt: skip
