"""Keys of `model` in NeMo 1.x NeVA that `neva` refuses unless they say what happens anyway."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from neva.config.keys.field import refused, section

_ARCHITECTURE = "neva builds LLaMA-type language models only"
_DROPOUT = "neva trains without dropout, as LLaVA does"
_INIT = "initial weights follow Megatron's scaled init"
_FUSION = "neva runs the same unfused kernels on every machine"
_TE = "neva does not use Transformer Engine"
_FP8 = "neva does not train in fp8"
_PIPELINE = "pipeline communication follows megatron-core's schedule"
_DDP = "gradients are reduced by megatron-core's distributed data parallel, which has no such switch"
_RECOMPUTE = "recompute is the same on every micro batch and stage: use activations_checkpoint_num_layers"
_PROFILE = "neva does not start Nsight: profile with torch.profiler or `nsys profile neva train …`"
_LORA = "neva does not train LoRA or other adapters yet"


@dataclass
class NsysProfile:
    """Profiling."""

    enabled: Any = refused(False, why=_PROFILE)
    start_step: Any = refused(10, why=_PROFILE)
    end_step: Any = refused(10, why=_PROFILE)
    ranks: Any = refused([0], why=_PROFILE)
    gen_shape: Any = refused(False, why=_PROFILE)


@dataclass
class RefusedModelKeys:
    """The refused keys of `model`."""

    nsys_profile: NsysProfile = section()

    peft: Any = refused(None, why=_LORA)
    fsdp_use_orig_params: Any = refused(
        True, why="FSDP2 keeps the original parameters, so frozen and trained ones share a unit anyway"
    )
    fsdp_limit_all_gathers: Any = refused(
        True, why="FSDP2 never joins more than the unit in use and the next"
    )
    mcore_gpt: Any = refused(True, why="the language model is megatron-core's GPTModel")
    position_embedding_type: Any = refused("rope", why=_ARCHITECTURE)
    rotary_percentage: Any = refused(1.0, why=_ARCHITECTURE)
    seq_len_interpolation_factor: Any = refused(
        None, why="scaled RoPE is model.rope_scaling, as in config.json"
    )
    normalization: Any = refused("rmsnorm", why=_ARCHITECTURE)
    activation: Any = refused("fast-swiglu", "swiglu", why=_ARCHITECTURE)
    bias: Any = refused(False, why=_ARCHITECTURE + "; a bias in QKV is model.add_qkv_bias")
    attention_type: Any = refused(
        "multihead", why=_ARCHITECTURE + "; grouped queries are model.num_query_groups"
    )
    transformer_block_type: Any = refused("pre_ln", why=_ARCHITECTURE)
    headscale: Any = refused(False, why=_ARCHITECTURE)
    normalize_attention_scores: Any = refused(True, why=_ARCHITECTURE)
    apply_query_key_layer_scaling: Any = refused(False, why=_ARCHITECTURE)
    openai_gelu: Any = refused(False, why=_ARCHITECTURE)
    onnx_safe: Any = refused(False, why=_ARCHITECTURE)
    megatron_legacy: Any = refused(False, why="the language model is megatron-core's GPTModel")
    use_emha: Any = refused(False, why="attention is scaled_dot_product_attention")
    use_flash_attention: Any = refused(
        True, why="attention is scaled_dot_product_attention, which takes FlashAttention where it can"
    )
    hidden_dropout: Any = refused(0, why=_DROPOUT)
    attention_dropout: Any = refused(0, why=_DROPOUT)
    ffn_dropout: Any = refused(0, why=_DROPOUT)
    use_scaled_init_method: Any = refused(True, why=_INIT)
    use_cpu_initialization: Any = refused(False, why="weights are drawn where the model runs")
    do_layer_norm_weight_decay: Any = refused(False, why="norms and biases are never decayed")
    pre_process: Any = refused(True, why="which stage embeds follows from the pipeline layout")
    post_process: Any = refused(True, why="which stage has the head follows from the pipeline layout")

    masked_softmax_fusion: Any = refused(False, why=_FUSION)
    bias_activation_fusion: Any = refused(False, why=_FUSION)
    bias_dropout_add_fusion: Any = refused(False, why=_FUSION)
    gradient_accumulation_fusion: Any = refused(False, why=_FUSION)
    persist_layer_norm: Any = refused(False, why=_FUSION)
    transformer_engine: Any = refused(False, why=_TE)
    ub_tp_comm_overlap: Any = refused(False, why=_TE)
    fp8: Any = refused(False, why=_FP8)
    fp8_e4m3: Any = refused(False, why=_FP8)
    fp8_hybrid: Any = refused(False, why=_FP8)
    fp8_margin: Any = refused(0, why=_FP8)
    fp8_interval: Any = refused(1, why=_FP8)
    fp8_amax_history_len: Any = refused(1, why=_FP8)
    fp8_amax_compute_algo: Any = refused("most_recent", why=_FP8)
    fp16_lm_cross_entropy: Any = refused(False, why="the loss is computed in float32")
    fp32_residual_connection: Any = refused(False, why="the residual stream has the precision of the model")
    megatron_amp_O2: Any = refused(True, why="training in 16 bits always keeps float32 main weights")

    overlap_p2p_comm: Any = refused(False, why=_PIPELINE)
    batch_p2p_comm: Any = refused(True, why=_PIPELINE)
    async_grad_allreduce: Any = refused(False, why=_DDP)
    grad_allreduce_chunk_size_mb: Any = refused(125, why=_DDP)
    grad_div_ar_fusion: Any = refused(True, why=_DDP)
    gradient_as_bucket_view: Any = refused(True, why=_DDP)
    num_micro_batches_with_partial_activation_checkpoints: Any = refused(None, why=_RECOMPUTE)
    activations_checkpoint_layers_per_pipeline: Any = refused(None, why=_RECOMPUTE)
    dist_ckpt_format: Any = refused("torch_dist", why="checkpoints are written in torch's distributed format")
    rampup_batch_size: Any = refused(None, why="the global batch size is constant")
    drop_last: Any = refused(True, why="an epoch consists of whole global batches")
    no_seqlen_plus_one_input_tokens: Any = refused(False, why="labels are shifted inside a sequence")
    apex_transformer_log_level: Any = refused(30, why="neva does not use Apex")
    sharp: Any = refused(False, None, why="neva does not use SHARP collectives")
    nccl_communicator_config_path: Any = refused(None, why="NCCL is configured by its environment variables")
