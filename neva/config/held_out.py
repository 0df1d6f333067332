"""What must hold between the keys of what a run is looked at by: the held-out set, samples, the value that ranks."""

from __future__ import annotations

import re
from collections.abc import Iterator

from omegaconf import DictConfig

from neva.constants import LOGGED_VALUES, VALIDATION_LOSS
from neva.registry import METRICS


def validates(cfg: DictConfig) -> bool:
    """Whether a run holds anything out to validate on."""
    return cfg.model.data.validation is not None or cfg.model.data.validation_split > 0


def held_out_problems(cfg: DictConfig, world_size: int) -> Iterator[str]:
    """Yields what contradicts itself about what is held out, and how much of it is read how often."""
    data, limit = cfg.model.data, cfg.trainer.limit_val_batches
    if data.validation is not None and data.validation_split:
        yield (
            f"model.data.validation={data.validation} and model.data.validation_split={data.validation_split} both "
            "hold something out: give one of them"
        )
    if limit is not None and bool(limit) != validates(cfg):
        nothing = "there is nothing to validate on: give model.data.validation or model.data.validation_split"
        unread = "something is held out to validate on: leave the key out to read all of it"
        yield f"trainer.limit_val_batches={limit} but {nothing if limit else unread}"
    for name in ("limit_val_batches", "val_check_interval"):
        value = cfg.trainer[name]
        if isinstance(value, float) and value > 1:
            yield f"trainer.{name}={value}: a float is a share, at most 1.0; give an integer for a number"


def sample_problems(cfg: DictConfig, world_size: int) -> Iterator[str]:
    """Yields why no prompts could be answered while training, or not be scored."""
    samples, model = cfg.trainer.samples, cfg.model
    if samples.metric is not None and samples.metric not in METRICS:
        yield (
            f"trainer.samples.metric={samples.metric} is no metric; expected one of {', '.join(METRICS.names())}"
        )
    if samples.prompt_file is None:
        return
    for key in ("context_parallel_size", "virtual_pipeline_model_parallel_size"):
        if (model[key] or 1) > 1:
            yield (
                f"trainer.samples.prompt_file with model.{key}={model[key]}: answers grow a token at a time, which "
                "needs whole sequences and one stage a rank; leave the samples to neva infer on a checkpoint"
            )


def monitor_problems(cfg: DictConfig, world_size: int) -> Iterator[str]:
    """Yields why no checkpoint could be ranked: a value that nothing logs would keep none but the last."""
    manager = cfg.exp_manager
    params = manager.checkpoint_callback_params
    logged = ["step", *LOGGED_VALUES]
    if cfg.trainer.precision == 16:
        logged.append("loss_scale")
    if validates(cfg):
        logged.append(VALIDATION_LOSS)
    more = "" if validates(cfg) else f" ({VALIDATION_LOSS} with model.data.validation or validation_split)"
    if not manager.create_checkpoint_callback:
        return
    yield from _file_name(params.filename)
    if not params.save_top_k:
        return
    if params.monitor not in logged:
        yield (
            f"exp_manager.checkpoint_callback_params.monitor={params.monitor} is not logged, so that no "
            f"checkpoint could be ranked by it; expected one of {', '.join(logged)}{more}"
        )
    elif params.monitor == VALIDATION_LOSS:
        yield from _ranked_by_validation(params, cfg.trainer.val_check_interval)


def _file_name(name: str) -> Iterator[str]:
    """Names that no checkpoint could have, or that a resumed run would not find or take for another's."""
    if not re.fullmatch(r"(?!\.)([^/{}]|\{\w+(:[^/{}]*)?\})+", name) or name.endswith(("end", "last")):
        yield (
            f"exp_manager.checkpoint_callback_params.filename={name}: expected a name without / and a point in front, "
            "with logged values in braces as {step}, that ends with neither end nor last, as NeMo's of a run's end do"
        )


def _ranked_by_validation(params: DictConfig, interval: float) -> Iterator[str]:
    """What would rank a checkpoint by the validation of an earlier step, or keep the worst."""
    every = params.every_n_train_steps
    if not isinstance(interval, int) or every % interval:
        yield (
            f"exp_manager.checkpoint_callback_params.monitor={VALIDATION_LOSS} with every_n_train_steps={every} and "
            f"trainer.val_check_interval={interval}: a checkpoint is ranked by a validation of its own step, so let "
            "the former be a multiple of the latter"
        )
    if params.mode != "min":
        yield (
            f"exp_manager.checkpoint_callback_params.monitor={VALIDATION_LOSS} with mode={params.mode} would keep the "
            "checkpoints that validate worst: set mode=min"
        )
