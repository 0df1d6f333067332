"""Keys of `model` in NeMo 1.x NeVA that pass without effect, or are refused unless they say what happens anyway."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from neva.config.keys.field import ignored, refused, section

_ARCHITECTURE = "neva builds LLaMA and its relatives only"
_DROPOUT = "neva trains without dropout, as LLaVA does"
_INIT = "initial weights follow Megatron's scaled init"
_FUSION = "fused and unfused kernels compute the same; neva runs the same ones on every machine"
_TE = "Transformer Engine computes the same layers; neva's are megatron-core's own"
_FP8_SCALES = "model.fp8 scales each tensor by its own largest number, each time"
_PIPELINE = "when stages send decides over time only; it follows megatron-core's schedule"
_DDP = "how gradients are bucketed decides over time only; megatron-core's data parallel does it its way"
_EXPERTS = "where and in which order experts compute decides over time only"
_DROPPED = "every token goes to all of its experts"
_RECOMPUTE = (
    "recompute changes memory and time only; it is the same on every micro batch and stage, see "
    "model.activations_checkpoint_num_layers"
)
_PROFILE = "neva does not start Nsight: profile with torch.profiler or `nsys profile neva train …`"
_PROFILE_DETAIL = "acts with model.nsys_profile.enabled only"


@dataclass
class NsysProfile:
    """Profiling."""

    enabled: Any = refused(False, why=_PROFILE)
    start_step: Any = ignored(_PROFILE_DETAIL)
    end_step: Any = ignored(_PROFILE_DETAIL)
    ranks: Any = ignored(_PROFILE_DETAIL)
    gen_shape: Any = ignored(_PROFILE_DETAIL)


@dataclass
class RefusedModelKeys:
    """The keys of `model` that have no effect, and the refused ones."""

    nsys_profile: NsysProfile = section()

    load_rng: Any = ignored(
        "what training draws follows from model.seed and the step, and so does the order of the data"
    )
    fsdp_use_orig_params: Any = ignored(
        "FSDP2 keeps the original parameters, so frozen and trained ones share a unit anyway"
    )
    fsdp_limit_all_gathers: Any = ignored("FSDP2 never joins more than the unit in use and the next")
    mcore_gpt: Any = ignored(
        "the language model is megatron-core's GPTModel; NeMo's legacy one computes the same"
    )
    position_embedding_type: Any = refused("rope", why=_ARCHITECTURE)
    seq_len_interpolation_factor: Any = refused(
        None, why="scaled RoPE is model.rope_scaling, as in config.json"
    )
    bias: Any = refused(False, why=_ARCHITECTURE + "; a bias in QKV is model.add_qkv_bias")
    attention_type: Any = refused(
        "multihead", why=_ARCHITECTURE + "; grouped queries are model.num_query_groups"
    )
    headscale: Any = refused(False, why=_ARCHITECTURE)
    normalize_attention_scores: Any = refused(True, why=_ARCHITECTURE)
    apply_query_key_layer_scaling: Any = ignored(
        "scales scores down and up again, against overflow in 16 bits"
    )
    openai_gelu: Any = ignored("acts with model.activation=gelu only")
    onnx_safe: Any = ignored("how operations are written for ONNX changes none of them")
    megatron_legacy: Any = refused(False, why="queries, keys and values lie in the order of megatron-core")
    use_emha: Any = refused(False, why="attention is scaled_dot_product_attention")
    use_flash_attention: Any = ignored(
        "attention is scaled_dot_product_attention, which takes FlashAttention where it can"
    )
    hidden_dropout: Any = refused(0, why=_DROPOUT)
    attention_dropout: Any = refused(0, why=_DROPOUT)
    ffn_dropout: Any = refused(0, why=_DROPOUT)
    use_scaled_init_method: Any = refused(True, why=_INIT)
    use_cpu_initialization: Any = ignored(
        "weights are drawn where the model runs, from the same distribution"
    )
    do_layer_norm_weight_decay: Any = refused(False, why="norms and biases are never decayed")
    pre_process: Any = refused(True, why="which stage embeds follows from the pipeline layout")
    post_process: Any = refused(True, why="which stage has the head follows from the pipeline layout")

    masked_softmax_fusion: Any = ignored(_FUSION)
    bias_activation_fusion: Any = ignored(_FUSION)
    bias_dropout_add_fusion: Any = ignored(_FUSION)
    gradient_accumulation_fusion: Any = ignored(_FUSION)
    persist_layer_norm: Any = ignored(_FUSION)
    transformer_engine: Any = ignored(_TE)
    ub_tp_comm_overlap: Any = ignored("overlapping communication changes time only")
    fp8_hybrid: Any = ignored("what model.fp8 does unless model.fp8_e4m3 is set")
    fp8_margin: Any = ignored(_FP8_SCALES)
    fp8_interval: Any = ignored(_FP8_SCALES)
    fp8_amax_history_len: Any = ignored(_FP8_SCALES)
    fp8_amax_compute_algo: Any = ignored(_FP8_SCALES)
    fp16_lm_cross_entropy: Any = refused(False, why="the loss is computed in float32")
    fp32_residual_connection: Any = refused(False, why="the residual stream has the precision of the model")
    megatron_amp_O2: Any = ignored("main weights are float32 and the forward pass has 16 bits either way")

    moe_token_dropping: Any = refused(False, why=_DROPPED)
    moe_expert_capacity_factor: Any = refused(None, why=_DROPPED)
    moe_pad_expert_input_to_capacity: Any = refused(False, why=_DROPPED)
    moe_input_jitter_eps: Any = refused(None, why="the router sees the hidden states as they are")
    moe_layer_freq: Any = refused(1, why="every layer has experts, or none")
    moe_router_score_function: Any = refused("softmax", why="the router's probabilities are a softmax")
    moe_router_enable_expert_bias: Any = refused(False, why="experts are balanced by a loss")
    moe_router_topk_scaling_factor: Any = refused(None, why="experts weigh what the router gives them")
    moe_extended_tp: Any = refused(False, why="ranks that share a layer share each of its experts")
    moe_grouped_gemm: Any = ignored(_EXPERTS)
    moe_token_dispatcher_type: Any = ignored(_EXPERTS)
    moe_permute_fusion: Any = ignored(_EXPERTS)
    moe_shared_expert_overlap: Any = ignored(_EXPERTS)
    moe_per_layer_logging: Any = ignored("the losses of routers are logged as means over the layers")

    overlap_p2p_comm: Any = ignored(_PIPELINE)
    batch_p2p_comm: Any = ignored(_PIPELINE)
    async_grad_allreduce: Any = ignored(_DDP)
    grad_allreduce_chunk_size_mb: Any = ignored(_DDP)
    grad_div_ar_fusion: Any = ignored(_DDP)
    gradient_as_bucket_view: Any = ignored(_DDP)
    num_micro_batches_with_partial_activation_checkpoints: Any = ignored(_RECOMPUTE)
    activations_checkpoint_layers_per_pipeline: Any = ignored(_RECOMPUTE)
    dist_ckpt_format: Any = ignored(
        "checkpoints are written in torch's distributed format; the numbers are the same"
    )
    rampup_batch_size: Any = refused(None, why="the global batch size is constant")
    no_seqlen_plus_one_input_tokens: Any = refused(False, why="labels are shifted inside a sequence")
    apex_transformer_log_level: Any = ignored("neva does not use Apex, so there is no log of it")
    sharp: Any = ignored(
        "SHARP changes where sums run, not what they are; NCCL_COLLNET_ENABLE asks NCCL for it"
    )
    nccl_communicator_config_path: Any = ignored(
        "tunes NCCL, which changes time only; its environment variables do the same"
    )
