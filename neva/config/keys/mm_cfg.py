"""`model.mm_cfg.*`: where tower, projector and language model come from, which of them train, and their sizes."""

from dataclasses import dataclass
from typing import Any

from neva.config.keys.field import MODEL, READING, TRAINED, key, refused, section
from neva.config.samples import IMAGE_TAGS
from neva.families.connector import connector_forms, connector_pattern
from neva.families.values import ACTIVATIONS
from neva.registry import LANGUAGE_FAMILIES


@dataclass
class Llm:
    """Where the language model comes from."""

    from_pretrained: str | None = key("Hugging Face folder or .nemo; null: random weights.", common=True)
    freeze: bool = key("Do not train the language model.", common=True, fixed=TRAINED)
    family: str | None = key(
        "Hugging Face model type of the language model; null: follows from the checkpoint or the sizes.",
        choices=LANGUAGE_FAMILIES.names,
        optional=True,
        fixed=MODEL,
    )
    config: dict[str, Any] | None = key(
        "With language_backend=huggingface: what its config.json says; follows from the checkpoint.",
        optional=True,
        fixed=MODEL,
    )
    model_type: str | None = key(
        "With use_im_start_end, whose tokens stand around an image: <extra_id_4>, <extra_id_5> of nvgpt, llama_2, v1, "
        "mistral, <|reserved_special_token_4|>, …5|> of llama_3, <fake_token_around_image> of idefics2; null: LLaVA's "
        "<im_start>, <im_end>.",
        choices=tuple(IMAGE_TAGS),
        fixed=READING,
    )


@dataclass
class VisionEncoder:
    """The vision tower."""

    from_pretrained: str | None = key("Hugging Face folder; null: random weights.", common=True)
    freeze: bool = key("Do not train the tower.", common=True, fixed=TRAINED)
    vision_encoder_lr_ratio: float = key("Its learning rate as a share of optim.lr, when trained.", above=0)
    model_type: str | None = key("Hugging Face model type: clip, siglip, …", fixed=MODEL)
    image_size: int | None = key("Side of the images that it was trained with, pixels.", low=1, fixed=MODEL)
    input_size: int | None = key(
        "Side of the images that it is shown, pixels; its learned positions are interpolated; null: image_size.",
        low=1,
        fixed=MODEL,
    )
    patch_dim: int | None = key("Side of a patch, pixels.", low=1, fixed=MODEL)
    hidden_size: int | None = key("Width.", low=1, fixed=MODEL)
    num_layers: int | None = key("Layers.", low=1, fixed=MODEL)
    num_attention_heads: int | None = key("Attention heads.", low=1, fixed=MODEL)
    ffn_hidden_size: int | None = key("Width of the feed-forward layer.", low=1, fixed=MODEL)
    hidden_act: str | None = key("Activation.", choices=ACTIVATIONS, fixed=MODEL)
    layernorm_epsilon: float | None = key("Epsilon of its layer norms.", above=0, fixed=MODEL)
    config: dict[str, Any] | None = key(
        "What else its config.json says, of towers that are more than their sizes; follows from the checkpoint.",
        fixed=MODEL,
    )
    vision_select_layer: int | list[int] = key(
        "Hidden state that is projected: -1 the last, -2 the one before; a list: their features are joined.",
        fixed=MODEL,
    )
    class_token_length: int | None = key(
        "Leading tokens to drop, class tokens and registers; null: all that the tower's type has; 0: none.",
        low=0,
        fixed=MODEL,
    )
    post_layernorm: bool = key(
        "Apply the tower's last norm to the hidden state that is projected.", fixed=MODEL
    )
    crop_size: list[int] | None = key("Height, width; follows from image_size.", low=1, length=2)
    image_mean: list[float] | None = key(
        "Mean of each colour, 0 to 1.", low=0, high=1, length=3, fixed=READING
    )
    image_std: list[float] | None = key(
        "Standard deviation of each colour.", above=0, length=3, fixed=READING
    )

    from_hf: Any = refused(True, why="towers are Hugging Face models")


@dataclass
class MmCfg:
    """The multimodal parts."""

    llm: Llm = section()
    vision_encoder: VisionEncoder = section()
    second_vision_encoder: VisionEncoder | None = key(
        "A second tower that sees the same pictures, with the keys of vision_encoder; null: none. Features of both "
        "stand side by side.",
        optional=True,
        fixed=MODEL,
    )
    pretrain_mm_mlp_adapter: str | None = key("A .nemo whose projector is taken (stage 1's).", common=True)
    mm_mlp_adapter_type: str = key(
        "What projects patches into the language model.",
        pattern=connector_pattern,
        form=connector_forms,
        fixed=MODEL,
    )
    mm_mlp_adapter_freeze: bool = key("Do not train the projector.", fixed=TRAINED)
    mm_mlp_adapter_lr_ratio: float | None = key(
        "The projector's learning rate as a share of optim.lr; null: 1, and beside adapters NeVA's 0.1.",
        above=0,
    )

    use_im_start_end: bool = key(
        "Put a token of the vocabulary before and behind each image, as LLaVA and NeVA can.", fixed=READING
    )
    use_image_tile: bool = key(
        "Images of twice the tower's side, which sees their quarters; a downsampling projector joins them to the "
        "positions of one tile.",
        fixed=READING,
    )
