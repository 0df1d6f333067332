"""Values that follow from others: filled in where the YAML says null, compared where it gives one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf, open_dict

from neva.config.experts import COEFFICIENT, EXPERT_KEYS, NUMBER, expert_keys, fill_experts
from neva.config.fsdp import fill_fsdp
from neva.config.model_config import (
    FORM_KEYS,
    LANGUAGE_KEYS,
    SAME_ACTIVATION,
    TOWER_KEYS,
    decoder_form_of,
    differing_form_keys,
    form_keys,
    language_backend_of,
    language_config_of,
    media_rules_of,
    own_template_of,
    plain,
    recorded_family,
    recorded_llm,
    vision_config_of,
)
from neva.config.schema import NULLABLE
from neva.config.show import as_override
from neva.errors import ConfigError, naming
from neva.families.configs import LanguageConfig
from neva.families.language import HUGGING_FACE, language_config_from_hf
from neva.families.vision import listed
from neva.families.vision_reading import vision_config_from_hf
from neva.formats.hf_files import MODEL_CONFIG, image_processor_settings, read_chat_template
from neva.formats.json import read_object
from neva.formats.nemo_header import nemo_config
from neva.formats.vocabulary import tokenizer_size
from neva.registry import VISION_FAMILIES
from neva.templates.choice import CHAT, CHAT_KEY, check_choice

Shape = TypeVar("Shape")


def resolve(cfg: DictConfig) -> DictConfig:
    """Returns a copy of `cfg` without interpolations and with every derived null filled in.

    Sizes come from the `config.json` of the `from_pretrained` folders where those exist, else from the YAML.
    A tree without a `model` section (inference) is only resolved: its sizes are those of the .nemo.

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
            fill_fsdp(resolved.model)
            _checkpoints(resolved)
    OmegaConf.set_struct(resolved, True)
    return resolved


def require_global_batch(num_samples: int, global_batch_size: int, what: str = "records") -> None:
    """Raises ConfigError when the data is too short for a single step; `what` is in a batch, for the message."""
    if num_samples < global_batch_size:
        raise ConfigError(
            f"{num_samples} {what} do not fill one global batch; model.global_batch_size must be at most "
            f"{num_samples}, found {global_batch_size}"
        )


def total_steps(
    trainer_cfg: DictConfig, num_samples: int, global_batch_size: int, drop_last: bool = True
) -> int:
    """Returns the optimizer steps of the run: `max_steps` or the whole global batches of `max_epochs`, if that is less.

    Without `drop_last`, a global batch may lie in two epochs.

    Raises:
        ConfigError: neither is given, or the data does not fill one global batch.
    """
    require_global_batch(num_samples, global_batch_size)
    max_steps, max_epochs = trainer_cfg.max_steps, trainer_cfg.max_epochs
    epochs_given = max_epochs is not None and max_epochs > 0
    if not epochs_given:
        if max_steps <= 0:
            raise ConfigError(
                "trainer.max_steps=-1 and trainer.max_epochs=-1: give one of them a positive number"
            )
        return max_steps
    from_epochs = num_samples // global_batch_size * max_epochs
    if not drop_last:
        from_epochs = num_samples * max_epochs // global_batch_size
    return min(max_steps, from_epochs) if max_steps > 0 else from_epochs


def validation_interval(trainer_cfg: DictConfig, steps_per_epoch: int) -> int:
    """Returns the steps between two validations: an integer of `val_check_interval`, or its share of an epoch."""
    interval = trainer_cfg.val_check_interval
    return interval if isinstance(interval, int) else max(1, int(steps_per_epoch * interval))


def tower_sizes(folder: str | None, wanted: str | None = None) -> dict[str, Any]:
    """Returns our `mm_cfg.vision_encoder` keys as the tower's checkpoint gives them; empty without a checkpoint.

    `wanted` is the family that the YAML names: one that takes the checkpoint's tensors for its own keeps its name.
    """
    shape = _read(folder, vision_config_from_hf)
    if shape is None:
        return {}
    sizes = {key: getattr(shape, field) for key, field in TOWER_KEYS.items()}
    if (
        wanted is not None
        and wanted in VISION_FAMILIES
        and shape.model_type in VISION_FAMILIES[wanted].also_loads
    ):
        del sizes["model_type"]
    if shape.others:
        sizes["config"] = {key: listed(value) for key, value in shape.others}
    statistics = image_processor_settings(str(folder))
    if statistics is not None:
        sizes |= {key: statistics[key] for key in ("image_mean", "image_std") if key in statistics}
    return sizes


def language_sizes(source: str | None, backend: str | None = None) -> dict[str, Any]:
    """Returns our `model` keys as the language model's folder or .nemo gives them; empty while neither exists."""
    recorded = nemo_config(source)
    if recorded is not None:
        known = (*LANGUAGE_KEYS, *EXPERT_KEYS)
        sizes = {key: recorded[key] for key in known if recorded.get(key) is not None}
        return sizes | differing_form_keys(decoder_form_of(recorded))
    shape = _read(source, partial(language_config_from_hf, backend=backend))
    return {} if shape is None else _keys_of(shape)


def _keys_of(language: LanguageConfig) -> dict[str, Any]:
    sizes = {key: getattr(language, field) for key, field in LANGUAGE_KEYS.items()}
    return sizes | differing_form_keys(language.form) | expert_keys(language.experts)


def language_record(source: str | None, backend: str) -> dict[str, Any]:
    """Returns the keys of `mm_cfg.llm` that a folder or .nemo gives: what its sizes do not tell.

    Raises:
        ConfigError: it is a .nemo whose language model another backend runs.
    """
    recorded = nemo_config(source)
    if recorded is None:
        shape = _read(source, partial(language_config_from_hf, backend=backend))
        return {} if shape is None else language_keys(shape)
    if (found := language_backend_of(recorded)) != backend:
        raise ConfigError(
            f"model.language_backend={backend}, but {source} records {found}, whose tensors have other names: set "
            f"model.language_backend={found}"
        )
    keys = {"family": recorded_family(recorded), "config": plain(recorded_llm(recorded).get("config"))}
    return {key: value for key, value in keys.items() if value is not None}


def language_keys(language: LanguageConfig) -> dict[str, Any]:
    """Returns the keys of `mm_cfg.llm` that record what the sizes of a language model do not tell."""
    keys = {"family": language.family, "config": language.hf_config}
    return {key: value for key, value in keys.items() if value is not None}


def _read(folder: str | None, from_hf: Callable[[dict[str, Any]], Shape]) -> Shape | None:
    """What the `config.json` of a Hugging Face folder says, or None when there is no such file (yet)."""
    path = Path(folder) / MODEL_CONFIG if folder else None
    if path is None or not path.is_file():
        return None
    with naming(path):
        return from_hf(read_object(path, ConfigError))


def _vision(model_cfg: DictConfig) -> None:
    tower = model_cfg.mm_cfg.vision_encoder
    source = f"{tower.from_pretrained}/config.json"
    _fill_or_compare(
        tower,
        tower_sizes(tower.from_pretrained, tower.model_type),
        "model.mm_cfg.vision_encoder",
        source,
        "model/vision_encoder",
    )
    _require(tower, tuple(TOWER_KEYS), "model.mm_cfg.vision_encoder", tower.from_pretrained)
    if tower.model_type in VISION_FAMILIES:
        leading = VISION_FAMILIES[tower.model_type].leading_tokens(tower.config or {})
        if tower.class_token_length is None:
            tower.class_token_length = leading
        elif tower.class_token_length > leading:
            raise ConfigError(
                f"model.mm_cfg.vision_encoder.class_token_length={tower.class_token_length} but a {tower.model_type} "
                f"tower gives {leading} tokens that are no patches: leave the key out, or give at most {leading}"
            )
    _require(tower, ("class_token_length",), "model.mm_cfg.vision_encoder", None)
    seen = _size_key(tower)
    side = [tower[seen], tower[seen]]
    _fill_or_compare(tower, {"crop_size": side}, "model.mm_cfg.vision_encoder", f"the tower's {seen}")


def _size_key(tower: DictConfig) -> str:
    """Returns the key that says how large an image the tower sees."""
    return "image_size" if tower.input_size is None else "input_size"


def _language(model_cfg: DictConfig) -> None:
    folder, backend = model_cfg.mm_cfg.llm.from_pretrained, language_backend_of(model_cfg)
    llm = model_cfg.mm_cfg.llm
    if sizes := language_sizes(folder, backend):
        sizes |= form_keys(decoder_form_of(sizes))
    for key in FORM_KEYS:
        model_cfg[key] = model_cfg.get(key)  # trees of one's own may be without
    model_cfg.activation = SAME_ACTIVATION.get(model_cfg.activation, model_cfg.activation)
    source = folder if nemo_config(folder) else f"{folder}/config.json"
    coefficient = sizes.pop(COEFFICIENT, None)  # of training, which may choose another
    if model_cfg[COEFFICIENT] is None:
        model_cfg[COEFFICIENT] = coefficient
    if sizes and NUMBER not in sizes:
        sizes[NUMBER] = None
    _fill_or_compare(model_cfg, sizes, "model", source, "model/llm")
    fill_experts(model_cfg)
    for key, value in language_record(folder, backend).items():
        llm[key] = llm.get(key)  # absent where sizes tell it
        _fill_or_compare(llm, {key: value}, "model.mm_cfg.llm", source)
    if backend == HUGGING_FACE and llm.get("config") is None:
        raise ConfigError(
            f"model.language_backend=huggingface, and {folder}/config.json does not exist: give the language model's "
            "folder as model.mm_cfg.llm.from_pretrained, or what is in that file as model.mm_cfg.llm.config"
        )
    if backend == HUGGING_FACE and not sizes:
        sizes = _keys_of(language_config_of(model_cfg))
        _fill_or_compare(model_cfg, sizes, "model", "model.mm_cfg.llm.config")
    ids = tokenizer_size(model_cfg.tokenizer.type)
    if model_cfg.vocab_size is None:
        model_cfg.vocab_size = ids
    elif ids is not None and ids > model_cfg.vocab_size:
        raise ConfigError(
            f"model.vocab_size={model_cfg.vocab_size} but the tokenizer {model_cfg.tokenizer.type} has {ids} "
            "ids: give the tokenizer that belongs to the language model, or a larger vocabulary"
        )
    if model_cfg.num_query_groups is None:
        model_cfg.num_query_groups = model_cfg.num_attention_heads
    if model_cfg.kv_channels is None and model_cfg.num_attention_heads is not None:
        model_cfg.kv_channels = model_cfg.hidden_size // model_cfg.num_attention_heads
    _require(model_cfg, tuple(LANGUAGE_KEYS.keys() - NULLABLE), "model", folder)


def _data(model_cfg: DictConfig) -> None:
    tower = model_cfg.mm_cfg.vision_encoder
    vision = vision_config_of(model_cfg)
    rules = media_rules_of(model_cfg, vision)
    side = [rules.tile_size, rules.tile_size]
    expected = {"image_token_len": rules.tile_tokens, "crop_size": side, "image_size": side}
    quarters = ", use_image_tile=true" * vision.image_tiles
    source = f"the tower ({_size_key(tower)} {vision.side}, patch_dim {tower.patch_dim}{quarters})"
    _fill_or_compare(model_cfg.data, expected, "model.data", source)
    _template(model_cfg)


def _template(model_cfg: DictConfig) -> None:
    """Takes the tokenizer's chat template in, so that a `.nemo` records it, and checks a template of one's own."""
    data = model_cfg.data
    if data.conv_template == CHAT and data.template is None:
        text = read_chat_template(model_cfg.tokenizer.type)
        data.template = None if text is None else {CHAT_KEY: text}
    check_choice(data.conv_template, own_template_of(model_cfg))


def _checkpoints(cfg: DictConfig) -> None:
    ranks = cfg.model.tensor_model_parallel_size * cfg.model.pipeline_model_parallel_size
    kept = cfg.exp_manager.checkpoint_callback_params
    path = "exp_manager.checkpoint_callback_params"
    _fill_or_compare(kept, {"model_parallel_size": ranks}, path, "tensor x pipeline parallel")


def _fill_or_compare(
    section: DictConfig, expected: Mapping[str, Any], path: str, source: str, group: str | None = None
) -> None:
    """Fills nulls of `section` with `expected`; raises when a given value differs, with all differences."""
    remedy = (
        f"correct the key or leave it out (in a tree of your own: {group}=from_checkpoint)"
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
            problems.append(
                f"{path}.{key}={as_override(given)} but {source} gives {as_override(value)}: {remedy}"
            )
    if problems:
        raise ConfigError("\n".join(problems))


def _require(section: DictConfig, keys: tuple[str, ...], path: str, folder: str | None) -> None:
    unknown = [key for key in keys if section[key] is None]
    if unknown:
        names = ", ".join(f"{path}.{key}" for key in unknown)
        found = f"{folder}/config.json does not exist or lacks them" if folder else "no checkpoint gives them"
        raise ConfigError(f"not known: {names}; {found}: give the values or the checkpoint folder")
