"""What must hold between the sizes of a model, its towers and what joins them."""

from __future__ import annotations

from collections.abc import Iterator

from omegaconf import DictConfig

from neva.config.language import recorded_family
from neva.config.parts import trained_parts
from neva.config.plain import plain
from neva.config.show import as_override
from neva.config.tower import SECOND_ENCODER, vision_config_of
from neva.constants import PROJECTOR
from neva.errors import ConfigError
from neva.families.configs import ALL
from neva.families.connector import connector_named
from neva.families.rope import check_scaling
from neva.families.tower_adapters import layer_matrices
from neva.families.vision import vision_family
from neva.families.vision_sizes import hidden_states
from neva.registry import LANGUAGE_FAMILIES


def size_problems(cfg: DictConfig, world_size: int) -> Iterator[str]:
    """Yields what cannot be built."""
    for problems in (_language_sizes, _towers, _connector, _tower_adapters):
        yield from problems(cfg)


def _language_sizes(cfg: DictConfig) -> Iterator[str]:
    model = cfg.model
    if model.precision != cfg.trainer.precision:
        yield (
            f"model.precision={model.precision} but trainer.precision={cfg.trainer.precision}: "
            "set only the latter"
        )
    if model.num_attention_heads % model.num_query_groups:
        yield (
            f"model.num_attention_heads={model.num_attention_heads} cannot be divided by "
            f"model.num_query_groups={model.num_query_groups}: every group serves equally many heads"
        )
    if model.rope_scaling is not None:
        try:
            check_scaling(plain(model.rope_scaling), int(model.kv_channels * (model.rotary_percentage or 1)))
        except ConfigError as error:
            yield f"model.rope_scaling: {error}"
    family = recorded_family(model)
    if family is not None and LANGUAGE_FAMILIES[family].follows_from_sizes:
        yield f"model.mm_cfg.llm.family={family} is what the sizes of a model tell: leave the key out"
    if model.data.image_token_len >= model.encoder_seq_length:
        yield (
            f"an image takes {model.data.image_token_len} positions, but model.encoder_seq_length="
            f"{model.encoder_seq_length} leaves none for text: raise it"
        )
    if model.encoder_seq_length > model.max_position_embeddings:
        yield (
            f"model.encoder_seq_length={model.encoder_seq_length} exceeds model.max_position_embeddings="
            f"{model.max_position_embeddings}: raise the latter or shorten the former"
        )


def _towers(cfg: DictConfig) -> Iterator[str]:
    for name in ("vision_encoder", SECOND_ENCODER):
        if (tower := cfg.model.mm_cfg.get(name)) is not None:
            yield from _tower_sizes(tower, name)


def _tower_sizes(tower: DictConfig, name: str) -> Iterator[str]:
    """Yields what cannot be in a tower, whose section of `mm_cfg` has this name."""
    section = f"model.mm_cfg.{name}"
    if tower.hidden_size % tower.num_attention_heads:
        yield (
            f"{section}.hidden_size={tower.hidden_size} cannot be divided by its "
            f"num_attention_heads={tower.num_attention_heads}"
        )
    for key in ("image_size", "input_size"):
        if tower[key] is not None and tower.patch_dim > tower[key]:
            yield f"{section}.patch_dim={tower.patch_dim} exceeds its {key}={tower[key]}"
    states = hidden_states(tower.num_layers)
    layers = plain(tower.vision_select_layer)
    if any(layer not in states for layer in ([layers] if isinstance(layers, int) else layers or [None])):
        yield (
            f"{section}.vision_select_layer={as_override(layers)}: a tower of "
            f"{tower.num_layers} layers has hidden states {states[0]} to {states[-1]}"
        )
    if tower.post_layernorm and vision_family(tower.model_type).last_norm is None:
        yield (
            f"{section}.post_layernorm=true with model_type={tower.model_type}: which norm of it is "
            "the last is not known; set it to false"
        )


def _connector(cfg: DictConfig) -> Iterator[str]:
    model = cfg.model
    connector = connector_named(model.mm_cfg.mm_mlp_adapter_type)
    try:
        connector.check_widths(vision_config_of(model).feature_size, model.hidden_size)
    except ConfigError as error:
        yield str(error)
    if not connector.has_tensors and trained_parts(model) <= {PROJECTOR}:
        yield (
            f"model.mm_cfg.mm_mlp_adapter_type={connector.kind} has no parameters and the other parts are frozen: "
            "nothing would train; set model.mm_cfg.llm.freeze or model.mm_cfg.vision_encoder.freeze to false"
        )


def _tower_adapters(cfg: DictConfig) -> Iterator[str]:
    vision = vision_config_of(cfg.model)
    if vision.lora is None:
        return
    known = {name.rpartition(".")[2] for name in layer_matrices(vision)}
    unknown = [target for target, _ in vision.lora.sites if not known or target not in (*known, ALL)]
    if unknown:
        yield (
            f"model.peft.lora_tuning.vision_target_modules names {unknown[0]}; expected "
            f"{', '.join((ALL, *sorted(known))) if known else 'null'} with a tower of type {vision.model_type}"
        )
