"""The model that both sides of a comparison have: LLaVA's parts at a size that a laptop runs, with random weights."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file

from neva.families.configs import LanguageConfig, VisionConfig
from neva.model.llava import NevaModel

VOCAB = 32000
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


def random_llava() -> NevaModel:
    """Returns neva's model, alone in a process group of its own."""
    from neva.distributed import groups
    from neva.model.build import build_model

    groups.init_process_group(rank=0, world_size=1)
    groups.init_model_parallel(groups.ParallelSizes(), seed=1)
    return build_model(VISION, LANGUAGE, "mlp2x_gelu")


def write_twin(model: NevaModel, folder: Path) -> None:
    """Writes the model as `LlavaForConditionalGeneration.from_pretrained` reads it."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    from neva.families.connector import projector_table
    from neva.families.language import language_table
    from neva.families.naming import LLAVA_HF
    from neva.families.vision import stored_tower, tower_shapes, tower_table

    table = (
        language_table(LANGUAGE, LLAVA_HF)
        + tower_table(tower_shapes(VISION, pooling_head=False), stored_tower(VISION, LLAVA_HF))
        + projector_table("mlp2x_gelu", VISION.hidden_size, LANGUAGE.hidden_size, LLAVA_HF)
    )
    weights = table.to_hf({name: parameter.detach() for name, parameter in model.named_parameters()})
    save_file({name: weight.contiguous() for name, weight in weights}, folder / "model.safetensors")
    LlavaConfig(
        vision_config=CLIPVisionConfig(
            image_size=VISION.image_size, patch_size=VISION.patch_size, hidden_size=VISION.hidden_size,
            num_hidden_layers=VISION.num_layers, num_attention_heads=VISION.num_heads,
            intermediate_size=VISION.ffn_hidden_size, layer_norm_eps=VISION.layer_norm_eps,
        ),
        text_config=LlamaConfig(
            vocab_size=LANGUAGE.padded_vocab_size, hidden_size=LANGUAGE.hidden_size,
            intermediate_size=LANGUAGE.ffn_hidden_size, num_hidden_layers=LANGUAGE.num_layers,
            num_attention_heads=LANGUAGE.num_heads, rms_norm_eps=LANGUAGE.rms_norm_eps,
        ),
        image_token_index=IMAGE_ID,
        architectures=["LlavaForConditionalGeneration"],
    ).save_pretrained(folder)  # fmt: skip
