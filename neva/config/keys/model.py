"""`model.*` and the root of a training recipe."""

from dataclasses import dataclass
from typing import Any

from neva.config.keys.data import Data
from neva.config.keys.exp_manager import ExpManager
from neva.config.keys.field import MODEL, ORDER, READING, TRAINED, ignored, key, refused, section
from neva.config.keys.optim import Optim
from neva.config.keys.peft import Peft
from neva.config.keys.refusals import RefusedModelKeys
from neva.config.keys.trainer import Trainer
from neva.config.model_config import BIDIRECTIONAL, CAUSAL, IMAGE_TAGS, PREFIX, SAME_ACTIVATION
from neva.families.configs import (
    AFTER,
    ALL_HEADS,
    AROUND,
    BEFORE,
    EACH_HEAD,
    GELU_TANH,
    LAYER_NORM,
    RMS_NORM,
    RMS_NORM_PLUS_ONE,
    SILU,
)
from neva.families.connector import connector_forms, connector_pattern
from neva.families.language import HUGGING_FACE, MEGATRON
from neva.families.values import ACTIVATIONS
from neva.registry import LANGUAGE_FAMILIES

_BALANCING = {
    "sinkhorn": "it chooses other experts in training than in generation",
    "global_aux_loss": "it averages over the steps before, which no checkpoint holds",
}
_TOKENIZER = "neva reads tokenizer.json (model.tokenizer.type) and sentencepiece (model.tokenizer.model) only"
_SPECIAL_TOKENS = "image positions have ids outside the vocabulary, so no special tokens are needed"

_FORM = " null: as the checkpoint has it, else as LLaMA."
_OTHER_FORM = "neva has no such decoder yet"
_OTHER_ACTIVATIONS = (
    *("gelu", "geglu", "reglu", "fast-geglu", "fast-reglu", "squared-relu", "squared-reglu"),
    *("openai-gelu", "approx-gelu"),
)


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


@dataclass
class Tokenizer:
    """The tokenizer."""

    library: str = key(
        "huggingface: tokenizer.json; sentencepiece: tokenizer.model.",
        choices=("huggingface", "sentencepiece"),
        not_yet={"megatron": _TOKENIZER},
    )
    type: str | None = key("With huggingface: folder of tokenizer.json, or a .nemo.", common=True)
    model: str | None = key("With sentencepiece: the tokenizer.model file.")

    vocab_file: Any = refused(None, why=_TOKENIZER)
    merge_file: Any = refused(None, why=_TOKENIZER)
    delimiter: Any = refused(None, why=_TOKENIZER)
    sentencepiece_legacy: Any = refused(False, why=_TOKENIZER)
    additional_special_tokens: Any = refused(None, [], why=_SPECIAL_TOKENS)


@dataclass
class ModelKeys(RefusedModelKeys):
    """ModelKeys, data and optimizer."""

    precision: int | str = key("Follows trainer.precision.", choices=(32, "bf16", 16))
    native_amp_init_scale: float = key("With precision 16: first loss scale.", low=1)
    native_amp_growth_interval: int = key(
        "With precision 16: steps without overflow after which the loss scale doubles.", low=1
    )
    hysteresis: int = key("With precision 16: overflows after which the loss scale halves.", low=1)
    seed: int = key("Seed of initial weights and of the data order.", low=0, common=True, fixed=ORDER)
    micro_batch_size: int = key("Samples in one forward pass of a rank.", low=1, common=True)
    global_batch_size: int = key("Samples in one optimizer step.", low=1, common=True)
    mega_batch_mult: int | None = key(
        "With modality, length_grouped: global batches in a group; null: a quarter of the data, of 1 to 50.",
        low=1,
    )
    drop_last: bool = key(
        "What is left of an epoch and fills no global batch is left out; false: the next epoch fills it."
    )
    tensor_model_parallel_size: int = key("Ranks that share each layer.", low=1)
    pipeline_model_parallel_size: int = key("Ranks that the layers are assigned to.", low=1)
    virtual_pipeline_model_parallel_size: int | None = key("Pieces of layers on each pipeline rank.", low=1)
    num_layers_in_first_pipeline_stage: int | None = key(
        "Layers beside the tower on the first stage; null: as many as elsewhere.", low=1
    )
    num_layers_in_last_pipeline_stage: int | None = key(
        "Layers beside the head on the last stage; null: as many as elsewhere.", low=1
    )
    context_parallel_size: int = key("Ranks that share each sequence.", low=1)
    expert_model_parallel_size: int = key(
        "Data and context parallel ranks that share out the experts of each layer.", low=1
    )
    sequence_parallel: bool = key("Norms and dropout share the sequence over tensor parallel ranks.")
    fsdp: bool = key("Data parallel ranks share out gradients, optimizer state and parameters (torch FSDP).")
    fsdp_sharding_strategy: str = key(
        "full (if not given): all three over all ranks; grad: parameters all-gathered during a step; "
        "hybrid: within a node.",
        choices=("full", "grad", "hybrid"),
        optional=True,
    )
    fsdp_grad_reduce_dtype: int | str = key(
        "Precision in which FSDP sums gradients over ranks; 32 if not given.",
        choices=(32, "32", "bf16"),
        optional=True,
    )
    fsdp_sharded_checkpoint: bool = key(
        "Each rank writes its share (if not given); false: rank 0 writes all.", optional=True
    )
    fsdp_cpu_offload: bool = key(
        "The shards wait, and Adam runs, in CPU memory; false if not given.", optional=True
    )
    restore_from_path: str | None = key("A .nemo whose weights the run starts from.", common=True)
    resume_from_checkpoint: str | None = key("Checkpoint to continue from, instead of the run folder's last.")
    load_optim: bool = key(
        "Of resume_from_checkpoint, take the optimizer's state; false: it begins afresh, on the checkpoint's weights."
    )
    load_data_state: bool = key(
        "Of resume_from_checkpoint, take the position in the data, steps and schedule; false: a run of its own from "
        "step 0, on other data if you like."
    )
    image_attention: str = key(
        "What the positions of an image see: causal, those before them; bidirectional, each other too (Megatron-VLM's "
        "--use-fixed-attn-mask, Gemma 3); prefix, all before the first answer, as the question does too (PaliGemma); "
        "causal if not given.",
        choices=(CAUSAL, BIDIRECTIONAL, PREFIX),
        optional=True,
        fixed=READING,
    )
    language_backend: str = key(
        "Who runs the language model: megatron, in every layout; huggingface, any that transformers has, with data "
        "parallel and FSDP.",
        choices=(MEGATRON, HUGGING_FACE),
        common=True,
        fixed=MODEL,
    )
    mm_cfg: MmCfg = section()
    peft: Peft = section()
    encoder_seq_length: int = key("Longest sequence; longer samples are cut.", low=1, common=True)
    max_position_embeddings: int = key("Longest position.", low=1)
    vocab_size: int | None = key("Token ids of the language model.", low=1, fixed=MODEL)
    make_vocab_size_divisible_by: int = key("Embedding and head are padded to a multiple of this.", low=1)
    num_layers: int | None = key("Layers of the language model.", low=1, fixed=MODEL)
    hidden_size: int | None = key("Width of the language model.", low=1, fixed=MODEL)
    ffn_hidden_size: int | None = key("Width of its feed-forward layer.", low=1, fixed=MODEL)
    num_attention_heads: int | None = key("Attention heads.", low=1, fixed=MODEL)
    num_query_groups: int | None = key(
        "Key-value heads; null: as many as attention heads.", low=1, fixed=MODEL
    )
    kv_channels: int | None = key(
        "Width of a head; null: hidden_size / num_attention_heads.", low=1, fixed=MODEL
    )
    layernorm_epsilon: float | None = key("Epsilon of the norms.", above=0, fixed=MODEL)
    rotary_base: float | None = key("Base of the rotary embedding.", above=0, fixed=MODEL)
    rope_scaling: dict[str, Any] | None = key(
        "Scaled RoPE, as in a config.json: linear, llama3, dynamic, yarn, longrope.", fixed=MODEL
    )
    share_embeddings_and_output_weights: bool | None = key("Head and embedding are one matrix.", fixed=MODEL)
    add_qkv_bias: bool | None = key("Bias in the QKV projection (Qwen2, StableLM 2).", fixed=MODEL)
    qk_layernorm: bool | None = key("Norms on queries and keys (Qwen3, OLMo 2, Gemma 3).", fixed=MODEL)
    window_size: int | None = key("Sliding window of the attention, tokens; null: none.", low=1, fixed=MODEL)
    normalization: str | None = key(
        "Norms: rmsnorm, rmsnorm1p (a weight that counts from one, Gemma), layernorm (centred, with a bias, StableLM)."
        + _FORM,
        choices=(RMS_NORM, RMS_NORM_PLUS_ONE, LAYER_NORM),
        not_yet=dict.fromkeys(("layernorm1p", "low_precision_layernorm"), _OTHER_FORM),
        optional=True,
        fixed=MODEL,
    )
    transformer_block_type: str | None = key(
        "Norms stand before attention and feed-forward (pre_ln), behind both (sublayer_post_ln, OLMo 2), or before and "
        "behind (sandwich_ln, Gemma)." + _FORM,
        choices=(BEFORE, AFTER, AROUND),
        not_yet=dict.fromkeys(("post_ln", "normformer", "gpt_j"), _OTHER_FORM),
        optional=True,
        fixed=MODEL,
    )
    activation: str | None = key(
        "Of the feed-forward layer: swiglu (fast-swiglu is the same), approx-geglu (tanh, Gemma)." + _FORM,
        choices=(SILU, *SAME_ACTIVATION, GELU_TANH),
        not_yet=dict.fromkeys(_OTHER_ACTIVATIONS, _OTHER_FORM),
        optional=True,
        fixed=MODEL,
    )
    rotary_percentage: float | None = key(
        "Share of each head that RoPE turns." + _FORM, above=0, high=1, optional=True, fixed=MODEL
    )
    qk_layernorm_scope: str | None = key(
        "With qk_layernorm, over each head (head) or all heads of a token (all, OLMo 2)." + _FORM,
        choices=(EACH_HEAD, ALL_HEADS),
        optional=True,
        fixed=MODEL,
    )
    query_pre_attn_scalar: float | None = key(
        "Scores are divided by its root (Gemma); null: by that of kv_channels.",
        above=0,
        optional=True,
        fixed=MODEL,
    )
    attn_logit_softcapping: float | None = key(
        "Soft cap of the scores of attention (Gemma 2); null: none.", above=0, optional=True, fixed=MODEL
    )
    final_logit_softcapping: float | None = key(
        "Soft cap of the logits (Gemma 2); null: none.", above=0, optional=True, fixed=MODEL
    )
    scale_embeddings: bool | None = key(
        "Multiply embeddings of tokens by the root of hidden_size (Gemma)." + _FORM,
        optional=True,
        fixed=MODEL,
    )
    global_attention_interval: int | None = key(
        "With window_size, each so many layers one sees the whole sequence (Gemma); null: all have the window.",
        low=1,
        optional=True,
        fixed=MODEL,
    )
    rotary_base_local: float | None = key(
        "Base of RoPE in layers with the window (Gemma 3); null: rotary_base.",
        above=0,
        optional=True,
        fixed=MODEL,
    )
    num_moe_experts: int | None = key(
        "Experts of each layer, of which a router chooses some for each token; null: none (Mixtral, Qwen3-MoE).",
        low=1,
        fixed=MODEL,
    )
    moe_router_topk: int | None = key("Experts of a token.", low=1, fixed=MODEL)
    moe_ffn_hidden_size: int | None = key("Width of an expert; null: ffn_hidden_size.", low=1, fixed=MODEL)
    moe_router_pre_softmax: bool | None = key(
        "Weights of experts are probabilities among all, not among the chosen (norm_topk_prob=false).",
        fixed=MODEL,
    )
    moe_shared_expert_intermediate_size: int | None = key(
        "Width of the expert that every token passes (Qwen2-MoE); null: none.", low=1, fixed=MODEL
    )
    moe_aux_loss_coeff: float | None = key(
        "Weight of the loss that balances experts; null: the checkpoint's router_aux_loss_coef, else 0.",
        low=0,
    )
    moe_z_loss_coeff: float | None = key("Weight of the loss that keeps the router's logits small.", low=0)
    moe_router_load_balancing_type: str = key(
        "What is balanced by itself: seq_aux_loss each sample; aux_loss each micro batch, which then changes the "
        "numbers; none: nothing.",
        choices=("seq_aux_loss", "aux_loss", "none"),
        not_yet=_BALANCING,
    )
    init_method_std: float = key("Standard deviation of random initial weights.", above=0)
    loss_average: str = key(
        "token: mean over the label tokens of the global batch; micro_batch: mean of each micro batch, then of those.",
        choices=("token", "micro_batch"),
    )
    activations_checkpoint_granularity: str | None = key(
        "Recompute in the backward pass: selective, full; null: nothing.",
        choices=("selective", "full"),
        common=True,
    )
    activations_checkpoint_method: str | None = key(
        "With full: uniform, block.", choices=("uniform", "block")
    )
    activations_checkpoint_num_layers: int | None = key("With full: layers in a unit.", low=1)
    torch_compile: bool = key(
        "Compile the layers when they first run (torch.compile): fewer passes over memory, half a minute at the start."
    )
    tokenizer: Tokenizer = section()
    data: Data = section()
    optim: Optim = section()


@dataclass
class Training:
    """Root of a training recipe."""

    dry_run: bool = key("Check and report, train nothing.")
    plugins: list[str] = key(
        "Your packages that register families, connectors, templates, sources, samplers.", optional=True
    )
    trainer: Trainer = section()
    exp_manager: ExpManager = section()
    model: ModelKeys = section()

    name: Any = ignored("the run's name is exp_manager.name, which may be ${name}")
    restore_from_path: Any = refused(None, why="the .nemo to start from is model.restore_from_path")
