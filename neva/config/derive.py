"""Values that follow from others: filled in where the YAML says null, compared where it gives one."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

from omegaconf import DictConfig, OmegaConf, open_dict

from neva.config.derive_language import fill_language
from neva.config.fill import fill_or_compare, read_shape, require
from neva.config.fsdp import fill_fsdp
from neva.config.media import media_rules_of
from neva.config.paths import vertex_folder
from neva.config.peft import fill_projector_rate
from neva.config.samples import own_template_of
from neva.config.tower import SECOND_ENCODER, TOWER_KEYS, vision_config_of
from neva.errors import ConfigError
from neva.families.vision_reading import vision_config_from_hf
from neva.families.vision_sizes import listed
from neva.formats.chat_template import read_chat_template
from neva.formats.hf_files import image_processor_settings
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
            fill_language(resolved.model)
            _data(resolved.model)
            fill_fsdp(resolved.model)
            fill_projector_rate(resolved.model)
            if resolved.trainer.gradient_clip_val is None:  # as Lightning has it
                resolved.trainer.gradient_clip_val = 0.0
            _checkpoints(resolved)
            _output(resolved.exp_manager)
    OmegaConf.set_struct(resolved, True)
    return resolved


def require_global_batch(num_samples: int, global_batch_size: int, what: str = "records") -> None:
    """Raises ConfigError when the data is too short for a single step; `what` is in a batch, for the message."""
    if num_samples < global_batch_size:
        raise ConfigError(
            f"{num_samples} {what} do not fill one global batch; model.global_batch_size must be at most "
            f"{num_samples}, found {global_batch_size}"
        )


class Standing(NamedTuple):
    """Where a run is: the steps that it has taken, and its place in the data, whatever its batches were."""

    step: int = 0
    epoch: int = 0
    offset: int = 0
    """Rows of the epoch that it has consumed."""


BEGINNING = Standing()


def total_steps(
    trainer_cfg: DictConfig,
    num_samples: int,
    global_batch_size: int,
    drop_last: bool = True,
    standing: Standing = BEGINNING,
) -> int:
    """Returns the optimizer steps of the run: `max_steps` or the whole global batches of `max_epochs`, if that is less.

    Without `drop_last`, a global batch may lie in two epochs. A run that goes on takes what is left of its epochs in
    batches of today's size.

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
    if standing.epoch >= max_epochs:  # other data has begun an epoch of its own
        standing = BEGINNING
    epochs = max_epochs - standing.epoch
    if drop_last:
        in_epoch = (num_samples - standing.offset) // global_batch_size
        left = in_epoch + num_samples // global_batch_size * (epochs - 1)
    else:
        left = (num_samples * epochs - standing.offset) // global_batch_size
    from_epochs = standing.step + left
    return min(max_steps, from_epochs) if max_steps > 0 else from_epochs


def validation_interval(trainer_cfg: DictConfig, steps_per_epoch: int) -> int:
    """Returns the steps between two validations: an integer of `val_check_interval`, or its share of an epoch."""
    interval = trainer_cfg.val_check_interval
    return interval if isinstance(interval, int) else max(1, int(steps_per_epoch * interval))


def tower_sizes(folder: str | None, wanted: str | None = None) -> dict[str, Any]:
    """Returns our `mm_cfg.vision_encoder` keys as the tower's checkpoint gives them; empty without a checkpoint.

    `wanted` is the family that the YAML names: one that takes the checkpoint's tensors for its own keeps its name.
    """
    shape = read_shape(folder, vision_config_from_hf)
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


def _vision(model_cfg: DictConfig) -> None:
    first, second = model_cfg.mm_cfg.vision_encoder, model_cfg.mm_cfg.get(SECOND_ENCODER)
    _tower(first, "vision_encoder")
    if second is None:
        return
    if second.input_size is None:  # it sees what the first one sees
        second.input_size = first[_size_key(first)]
    _tower(second, SECOND_ENCODER)
    for tower, key in ((first, "vision_encoder"), (second, SECOND_ENCODER)):
        require(tower, ("image_mean", "image_std"), f"model.mm_cfg.{key}", tower.from_pretrained)


def _tower(tower: DictConfig, name: str) -> None:
    """Fills what follows from the checkpoint of a tower, whose section of `mm_cfg` has this name."""
    section = f"model.mm_cfg.{name}"
    source = f"{tower.from_pretrained}/config.json"
    fill_or_compare(
        tower,
        tower_sizes(tower.from_pretrained, tower.model_type),
        section,
        source,
        f"model/{name}",
    )
    require(tower, tuple(TOWER_KEYS), section, tower.from_pretrained)
    if tower.model_type in VISION_FAMILIES:
        leading = VISION_FAMILIES[tower.model_type].leading_tokens(tower.config or {})
        if tower.class_token_length is None:
            tower.class_token_length = leading
        elif tower.class_token_length > leading:
            raise ConfigError(
                f"{section}.class_token_length={tower.class_token_length} but a {tower.model_type} "
                f"tower gives {leading} tokens that are no patches: leave the key out, or give at most {leading}"
            )
    require(tower, ("class_token_length",), section, None)
    seen = _size_key(tower)
    side = [tower[seen], tower[seen]]
    fill_or_compare(tower, {"crop_size": side}, section, f"the tower's {seen}")


def _size_key(tower: DictConfig) -> str:
    """Returns the key that says how large an image the tower sees."""
    return "image_size" if tower.input_size is None else "input_size"


def _data(model_cfg: DictConfig) -> None:
    tower = model_cfg.mm_cfg.vision_encoder
    vision = vision_config_of(model_cfg)
    rules = media_rules_of(model_cfg, vision)
    side = [rules.tile_size, rules.tile_size]
    expected = {"image_token_len": rules.tile_tokens, "crop_size": side, "image_size": side}
    quarters = ", use_image_tile=true" * vision.image_tiles
    source = f"the tower ({_size_key(tower)} {vision.side}, patch_dim {tower.patch_dim}{quarters})"
    fill_or_compare(model_cfg.data, expected, "model.data", source)
    _template(model_cfg)


def _template(model_cfg: DictConfig) -> None:
    """Takes the tokenizer's chat template in, so that a `.nemo` records it, and checks a template of one's own."""
    data = model_cfg.data
    if data.conv_template == CHAT and data.template is None:
        text = read_chat_template(model_cfg.tokenizer.type)
        data.template = None if text is None else {CHAT_KEY: text}
    check_choice(data.conv_template, own_template_of(model_cfg))


def _output(manager: DictConfig) -> None:
    """Puts the run where Vertex AI says, unless a key says where."""
    if manager.exp_dir is None and manager.explicit_log_dir is None:
        manager.exp_dir = vertex_folder()


def _checkpoints(cfg: DictConfig) -> None:
    ranks = cfg.model.tensor_model_parallel_size * cfg.model.pipeline_model_parallel_size
    kept = cfg.exp_manager.checkpoint_callback_params
    path = "exp_manager.checkpoint_callback_params"
    fill_or_compare(kept, {"model_parallel_size": ranks}, path, "tensor x pipeline parallel")
