"""Values that follow from others: filled in where the YAML says null, compared where it gives one."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from neva.config.errors import ConfigError

CLASS_TOKENS = {"clip": 1, "siglip": 0}
"""Tokens before the patches in a tower's output, by HF model type; other types say so in `class_token_length`."""

TOWER_KEYS = {
    "image_size": "image_size",
    "patch_dim": "patch_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads",
    "ffn_hidden_size": "intermediate_size",
    "hidden_act": "hidden_act",
    "layernorm_epsilon": "layer_norm_eps",
}
"""Our key of `mm_cfg.vision_encoder` -> key of a Hugging Face vision configuration."""

LANGUAGE_KEYS = {
    "num_layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "ffn_hidden_size": "intermediate_size",
    "num_attention_heads": "num_attention_heads",
    "vocab_size": "vocab_size",
    "layernorm_epsilon": "rms_norm_eps",
}
"""Our key of `model` -> key of a Hugging Face configuration of a LLaMA-type language model."""

HF_ROPE_THETA = 10000.0
"""What transformers takes where a `config.json` of before 2023-09 names no `rope_theta`."""

HF_TOWER_DEFAULTS = {
    "clip": {"hidden_act": "quick_gelu", "layernorm_epsilon": 1e-5},
    "siglip": {"hidden_act": "gelu_pytorch_tanh", "layernorm_epsilon": 1e-6},
}
"""What transformers takes where a tower's `config.json` leaves a value out (`CLIPVisionConfig`, `SiglipVisionConfig`)."""


def resolve(cfg: DictConfig) -> DictConfig:
    """A copy of `cfg` without interpolations and with every derived null filled in.

    Sizes come from the `config.json` of the `from_pretrained` folders where those exist, else from the YAML.
    A tree without a `model` section (inference) is returned resolved as it is: its sizes are those of the .nemo.

    Raises:
        ConfigError: a given value contradicts the checkpoint or the value that follows from others.
    """
    resolved = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True))
    assert isinstance(resolved, DictConfig)
    if "model" in resolved:
        with open_dict(resolved):
            _vision(resolved.model)
            _language(resolved.model)
            _data(resolved.model)
    OmegaConf.set_struct(resolved, True)
    return resolved


def total_steps(trainer_cfg: DictConfig, num_samples: int, global_batch_size: int) -> int:
    """Optimizer steps of the run: `max_steps`, or whole global batches of `max_epochs`; the smaller where both are given.

    Raises:
        ConfigError: neither is given, or an epoch holds no whole global batch.
    """
    max_steps, max_epochs = trainer_cfg.max_steps, trainer_cfg.max_epochs
    epochs_given = max_epochs is not None and max_epochs > 0
    if not epochs_given:
        if max_steps <= 0:
            raise ConfigError(
                "trainer.max_steps=-1 and trainer.max_epochs=-1: give one of them a positive number"
            )
        return max_steps
    steps_per_epoch = num_samples // global_batch_size
    if steps_per_epoch == 0:
        raise ConfigError(
            f"{num_samples} samples hold no whole global batch of {global_batch_size}: "
            "lower model.global_batch_size or give more data"
        )
    from_epochs = steps_per_epoch * max_epochs
    return min(max_steps, from_epochs) if max_steps > 0 else from_epochs


def hf_config(folder: str | None) -> dict[str, Any] | None:
    """`config.json` of a Hugging Face folder, or None when there is no such file (yet)."""
    path = Path(folder) / "config.json" if folder else None
    if path is None or not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} is not valid JSON ({error}): fetch the checkpoint again") from error


def tower_sizes(folder: str | None) -> dict[str, Any]:
    """Our `mm_cfg.vision_encoder` keys as the tower's checkpoint gives them; empty without a checkpoint."""
    config = hf_config(folder)
    if config is None:
        return {}
    config = config.get("vision_config", config)
    sizes = {ours: config[theirs] for ours, theirs in TOWER_KEYS.items() if theirs in config}
    if "model_type" in config:
        sizes["model_type"] = config["model_type"].removesuffix("_vision_model")
        sizes = HF_TOWER_DEFAULTS.get(sizes["model_type"], {}) | sizes
    preprocessor = Path(str(folder)) / "preprocessor_config.json"
    if preprocessor.is_file():
        statistics = json.loads(preprocessor.read_text(encoding="utf-8"))
        sizes |= {key: statistics[key] for key in ("image_mean", "image_std") if key in statistics}
    return sizes


def language_sizes(folder: str | None) -> dict[str, Any]:
    """Our `model` keys as the language model's checkpoint gives them; empty without a checkpoint.

    Two spellings of RoPE are read: `rope_theta` with `rope_scaling` (transformers 4) and `rope_parameters` (5).
    """
    config = hf_config(folder)
    if config is None:
        return {}
    config = config.get("text_config", config)
    sizes = {ours: config[theirs] for ours, theirs in LANGUAGE_KEYS.items() if theirs in config}
    heads, model_type = sizes.get("num_attention_heads"), config.get("model_type", "")
    if heads:
        sizes["num_query_groups"] = config.get("num_key_value_heads") or heads
        sizes["kv_channels"] = config.get("head_dim") or config["hidden_size"] // heads
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    theta = rope.pop("rope_theta", config.get("rope_theta", HF_ROPE_THETA))
    scaled = rope.get("rope_type", rope.get("type", "default")) != "default"
    windowed = config.get("use_sliding_window", True)
    return sizes | {
        "rotary_base": float(theta),
        "rope_scaling": rope if scaled else None,
        "share_embeddings_and_output_weights": config.get("tie_word_embeddings", False),
        "add_qkv_bias": config.get("attention_bias", model_type.startswith("qwen2")),
        "qk_layernorm": model_type.startswith("qwen3"),
        "window_size": config.get("sliding_window") if windowed else None,
    }


def tokenizer_size(folder: str | None) -> int | None:
    """One more than the highest token id in `tokenizer.json` of `folder`, or None without that file."""
    path = Path(folder or "")
    path = path if path.suffix == ".json" else path / "tokenizer.json"
    if not path.is_file():
        return None
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    highest = max(vocabulary.values()) if isinstance(vocabulary, dict) else len(vocabulary) - 1
    return 1 + max([highest, *(token["id"] for token in tokenizer.get("added_tokens", []))])


def _vision(model_cfg: DictConfig) -> None:
    tower = model_cfg.mm_cfg.vision_encoder
    source = f"{tower.from_pretrained}/config.json"
    _agree(
        tower,
        tower_sizes(tower.from_pretrained),
        "model.mm_cfg.vision_encoder",
        source,
        "model/vision_encoder",
    )
    _require(tower, (*TOWER_KEYS, "model_type"), "model.mm_cfg.vision_encoder", tower.from_pretrained)
    if tower.model_type in CLASS_TOKENS:
        expected = {"class_token_length": CLASS_TOKENS[tower.model_type]}
        _agree(tower, expected, "model.mm_cfg.vision_encoder", f"a {tower.model_type} tower")
    _require(tower, ("class_token_length",), "model.mm_cfg.vision_encoder", None)
    side = [tower.image_size, tower.image_size]
    _agree(tower, {"crop_size": side}, "model.mm_cfg.vision_encoder", "the tower's image_size")


def _language(model_cfg: DictConfig) -> None:
    folder = model_cfg.mm_cfg.llm.from_pretrained
    sizes = language_sizes(folder)
    _agree(model_cfg, sizes, "model", f"{folder}/config.json", "model/llm")
    ids = tokenizer_size(model_cfg.tokenizer.type)
    if model_cfg.vocab_size is None:
        model_cfg.vocab_size = ids
    elif ids is not None and ids > model_cfg.vocab_size:
        raise ConfigError(
            f"model.vocab_size={model_cfg.vocab_size} but the tokenizer {model_cfg.tokenizer.type} has {ids} ids: "
            "give the tokenizer that belongs to the language model, or a larger vocabulary"
        )
    _require(
        model_cfg,
        ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "vocab_size", "rotary_base"),
        "model",
        folder,
    )
    if model_cfg.num_query_groups is None:
        model_cfg.num_query_groups = model_cfg.num_attention_heads
    if model_cfg.kv_channels is None:
        model_cfg.kv_channels = model_cfg.hidden_size // model_cfg.num_attention_heads


def _data(model_cfg: DictConfig) -> None:
    tower = model_cfg.mm_cfg.vision_encoder
    side = [tower.image_size, tower.image_size]
    tokens = (tower.image_size // tower.patch_dim) ** 2
    expected = {"image_token_len": tokens, "crop_size": side, "image_size": side}
    source = f"the tower (image_size {tower.image_size}, patch_dim {tower.patch_dim})"
    _agree(model_cfg.data, expected, "model.data", source)


def _agree(
    section: DictConfig, expected: Mapping[str, Any], path: str, source: str, group: str | None = None
) -> None:
    """Fill nulls of `section` with `expected`; raise when a given value differs, with all differences."""
    remedy = (
        f"correct the key, or read every size from the checkpoint with {group}=from_checkpoint"
        if group
        else ("leave the key out")
    )
    problems = []
    for key, value in expected.items():
        given = section[key]
        given = OmegaConf.to_container(given) if OmegaConf.is_config(given) else given
        if given is None:
            section[key] = value
        elif given != value:
            problems.append(f"{path}.{key}={_show(given)} but {source} gives {_show(value)}: {remedy}")
    if problems:
        raise ConfigError("\n".join(problems))


def _require(section: DictConfig, keys: tuple[str, ...], path: str, folder: str | None) -> None:
    unknown = [key for key in keys if section[key] is None]
    if unknown:
        names = ", ".join(f"{path}.{key}" for key in unknown)
        found = f"{folder}/config.json does not exist or lacks them" if folder else "no checkpoint gives them"
        raise ConfigError(f"not known: {names}; {found}: give the values or the checkpoint folder")


def _show(value: Any) -> str:
    return json.dumps(value).replace(" ", "")
