"""`model.*`: sizes and form of the language model, how it computes, and the sections beside it."""

from dataclasses import dataclass
from typing import Any

from neva.config.keys.data import Data
from neva.config.keys.field import MODEL, READING, key, section
from neva.config.keys.mm_cfg import MmCfg
from neva.config.keys.optim import Optim
from neva.config.keys.peft import Peft
from neva.config.keys.refusals import RefusedModelKeys
from neva.config.keys.run import RunKeys
from neva.config.keys.tokenizer import Tokenizer
from neva.config.language import BIDIRECTIONAL, CAUSAL, PREFIX, SAME_ACTIVATION
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
from neva.families.language import HUGGING_FACE, MEGATRON

_BALANCING = {
    "sinkhorn": "it chooses other experts in training than in generation",
    "global_aux_loss": "it averages over the steps before, which no checkpoint holds",
}
_FORM = " null: as the checkpoint has it, else as LLaMA."
_OTHER_FORM = "neva has no such decoder yet"
_OTHER_ACTIVATIONS = (
    *("gelu", "geglu", "reglu", "fast-geglu", "fast-reglu", "squared-relu", "squared-reglu"),
    *("openai-gelu", "approx-gelu"),
)


@dataclass
class ModelKeys(RunKeys, RefusedModelKeys):
    """Model, data and optimizer."""

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
    fp8: bool = key("Multiply the matrices of the decoder's layers in 8-bit floats, forward and backward.")
    fp8_e4m3: bool = key(
        "With fp8, gradients too have three bits behind the point; false: two, and more range."
    )
    tokenizer: Tokenizer = section()
    data: Data = section()
    optim: Optim = section()
