"""What must hold between the keys that say how layers are run: recomputed, compiled, by whom."""

from __future__ import annotations

from collections.abc import Iterator

from omegaconf import DictConfig

from neva.config.keys.peft import QLORA
from neva.config.language import CAUSAL, image_attention_of, language_backend_of
from neva.config.layout import layers_of_stages
from neva.config.show import as_override
from neva.families.language import HUGGING_FACE
from neva.precision import FLOAT8_MULTIPLE


def layer_problems(cfg: DictConfig, world_size: int) -> Iterator[str]:
    """Yields what layers cannot do."""
    for problems in (_recompute, _compile, _float8, _backend):
        yield from problems(cfg)


def _recompute(cfg: DictConfig) -> Iterator[str]:
    model = cfg.model
    granularity, method = model.activations_checkpoint_granularity, model.activations_checkpoint_method
    layers = model.activations_checkpoint_num_layers
    if granularity == "full":
        if method is None or layers is None:
            yield (
                "model.activations_checkpoint_granularity=full also needs model.activations_checkpoint_method"
                "=uniform|block and model.activations_checkpoint_num_layers"
            )
        elif layers > (most := max(layers_of_stages(model) or [model.num_layers])):
            yield f"model.activations_checkpoint_num_layers={layers} exceeds the {most} layers"
    elif method is not None or layers is not None:
        yield (
            f"model.activations_checkpoint_method={as_override(method)} and "
            f"model.activations_checkpoint_num_layers={as_override(layers)} act only with "
            f"model.activations_checkpoint_granularity=full, which is {as_override(granularity)}"
        )


def _compile(cfg: DictConfig) -> Iterator[str]:
    model = cfg.model
    for kind in _other_layers(model) if model.torch_compile else ():
        yield f"model.torch_compile=true with {kind}: layers of Megatron's without experts are compiled; leave it out"


def _other_layers(model: DictConfig) -> Iterator[str]:
    """Yields what makes layers others than Megatron's without experts."""
    if model.num_moe_experts is not None:
        yield "experts"
    if language_backend_of(model) == HUGGING_FACE:
        yield "model.language_backend=huggingface"


def _float8(cfg: DictConfig) -> Iterator[str]:
    model = cfg.model
    if not model.fp8:
        if model.fp8_e4m3:
            yield "model.fp8_e4m3=true acts with model.fp8=true only"
        return
    packed = [f"model.peft.peft_scheme={QLORA}"] if model.peft.peft_scheme == QLORA else []
    for kind in (*_other_layers(model), *packed):
        yield (
            f"model.fp8=true with {kind}: matrices of Megatron's layers are multiplied in 8 bits, neither packed ones "
            "nor those of experts; leave it out"
        )
    for name, size in _matrix_sizes(model).items():
        if size % FLOAT8_MULTIPLE:
            yield (
                f"model.fp8=true with {name} = {size:g}: kernels take matrices in multiples of {FLOAT8_MULTIPLE}; "
                "leave it out"
            )


def _matrix_sizes(model: DictConfig) -> dict[str, float]:
    """Returns what rows and columns of a rank's matrices are made of."""
    ways, head = model.tensor_model_parallel_size, model.kv_channels
    return {
        "hidden_size": model.hidden_size,
        "ffn_hidden_size / tensor parallel": model.ffn_hidden_size / ways,
        "num_attention_heads * kv_channels / tensor parallel": model.num_attention_heads * head / ways,
        "2 * num_query_groups * kv_channels / tensor parallel": 2 * model.num_query_groups * head / ways,
    }


def _backend(cfg: DictConfig) -> Iterator[str]:
    model = cfg.model
    is_capped = model.get("attn_logit_softcapping") is not None
    attention = image_attention_of(model)
    if attention != CAUSAL and (is_capped or language_backend_of(model) == HUGGING_FACE):
        yield (
            f"model.image_attention={attention} with "
            f"{'soft caps of scores' if is_capped else 'model.language_backend=huggingface'}: only Megatron's layers "
            "without soft caps have it; leave it out"
        )
    if language_backend_of(model) != HUGGING_FACE:
        return
    recompute = [model[f"activations_checkpoint_{key}"] for key in ("granularity", "method", "num_layers")]
    if recompute not in ([None, None, None], ["full", "uniform", 1]):
        found = ", ".join(map(as_override, recompute))
        yield (
            f"model.activations_checkpoint_granularity, _method, _num_layers = {found} with model.language_backend="
            "huggingface, which recomputes each layer or none: expected full, uniform, 1, or null for all three"
        )
    most = model.mm_cfg.llm.config.get("max_position_embeddings")
    padded = -(-model.encoder_seq_length // model.data.pad_to_multiple_of) * model.data.pad_to_multiple_of
    if most is not None and padded > most:
        yield (
            f"model.encoder_seq_length={model.encoder_seq_length}, padded to a multiple of "
            f"{model.data.pad_to_multiple_of}, exceeds the {most} positions of the language model: shorten it"
        )
