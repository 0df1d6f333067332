"""What must hold between the keys that say how layers are run: recomputed, compiled, by whom."""

from __future__ import annotations

from collections.abc import Iterator

from omegaconf import DictConfig

from neva.config.layout import layers_of_stages
from neva.config.model_config import CAUSAL, image_attention_of, language_backend_of
from neva.config.show import as_override
from neva.families.language import HUGGING_FACE


def layer_problems(cfg: DictConfig, world_size: int) -> Iterator[str]:
    """Yields what layers cannot do."""
    for problems in (_recompute, _compile, _backend):
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
    kinds = {
        "experts": model.num_moe_experts is not None,
        "model.language_backend=huggingface": language_backend_of(model) == HUGGING_FACE,
    }
    for kind in (kind for kind, is_asked in kinds.items() if is_asked and model.torch_compile):
        yield f"model.torch_compile=true with {kind}: layers of Megatron's without experts are compiled; leave it out"


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
