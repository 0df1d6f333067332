"""What must hold between keys, once every value is known."""

from __future__ import annotations

from collections.abc import Iterator

from omegaconf import DictConfig

from neva.config.answering import inference_problems
from neva.config.experts import expert_problems
from neva.config.fsdp import fsdp_problems
from neva.config.held_out import held_out_problems, monitor_problems, sample_problems
from neva.config.layers import layer_problems
from neva.config.layout import data_parallel_size, layout_problems
from neva.config.peft import has_adapters, peft_problems
from neva.config.show import as_override
from neva.config.sizes import size_problems
from neva.errors import ConfigError
from neva.registry import SAMPLERS

SUMMARY_WRITER = ("comment", "purge_step", "max_queue", "flush_secs", "filename_suffix")
"""What TensorBoard's SummaryWriter takes beside the folder, which is the run's."""


def world_size(trainer_cfg: DictConfig) -> int:
    """Returns the processes of the run; that the launch agrees is checked by `neva.distributed.launch`."""
    return trainer_cfg.devices * trainer_cfg.num_nodes


def validate(cfg: DictConfig, world_size: int) -> None:
    """Raises when values of a resolved tree cannot go together on `world_size` processes.

    Raises:
        ConfigError: all problems, a line each.
    """
    rules = (
        (
            layout_problems,
            fsdp_problems,
            expert_problems,
            peft_problems,
            size_problems,
            _batch,
            _packing,
            _steps,
            layer_problems,
            _sources,
            _loss,
            held_out_problems,
            monitor_problems,
            sample_problems,
            _start,
            _writer,
        )
        if "model" in cfg
        else (inference_problems,)
    )
    problems = [problem for rule in rules for problem in rule(cfg, world_size)]
    if problems:
        raise ConfigError("\n".join(problems))


def _start(cfg: DictConfig, world_size: int) -> Iterator[str]:
    """Yields what is wrong with the keys that say what a run takes of the checkpoint that it starts from."""
    model = cfg.model
    for name in ("load_optim", "load_data_state"):
        if not model[name] and model.resume_from_checkpoint is None:
            yield (
                f"model.{name}=false says what a run takes of model.resume_from_checkpoint, which is null: name the "
                "checkpoint to start from, or leave the key out"
            )


def _writer(cfg: DictConfig, world_size: int) -> Iterator[str]:
    given = cfg.exp_manager.get("summary_writer_kwargs") or {}
    if unknown := [str(name) for name in given if name not in SUMMARY_WRITER]:
        yield (
            f"exp_manager.summary_writer_kwargs has {', '.join(unknown)}, which TensorBoard's SummaryWriter does not "
            f"take; expected some of {', '.join(SUMMARY_WRITER)}"
        )


def _loss(cfg: DictConfig, world_size: int) -> Iterator[str]:
    if cfg.model.loss_average == "micro_batch" and cfg.model.context_parallel_size > 1:
        yield (
            f"model.loss_average=micro_batch with model.context_parallel_size={cfg.model.context_parallel_size}: no "
            "rank has a whole micro batch then; set loss_average=token or the size to 1"
        )


def _batch(cfg: DictConfig, world_size: int) -> Iterator[str]:
    model, replicas = cfg.model, data_parallel_size(cfg.model, world_size)
    at_once = model.micro_batch_size * max(replicas, 1)
    if model.global_batch_size % at_once:
        yield (
            f"model.global_batch_size={model.global_batch_size} cannot be divided by micro batch "
            f"{model.micro_batch_size} x data parallel {replicas} = {at_once}: change one of "
            "model.micro_batch_size, model.global_batch_size, trainer.devices"
        )


def _packing(cfg: DictConfig, world_size: int) -> Iterator[str]:
    model, data = cfg.model, cfg.model.data
    order = SAMPLERS[data.dataloader_type]
    if order.is_single_pass and not model.drop_last:
        yield (
            f"model.drop_last=false with model.data.dataloader_type={data.dataloader_type}: what is left of an epoch "
            "would be filled up from the next, and there is none; set it to true, or use sequential"
        )
    if not data.packed_sequence:
        if data.packed_length is not None:
            yield f"model.data.packed_length={data.packed_length} acts only with model.data.packed_sequence=true"
        return
    if order.is_grouped:
        yield (
            f"model.data.dataloader_type={data.dataloader_type} with model.data.packed_sequence=true: it puts samples "
            "of similar length together, of which none fills the room that another leaves; use cyclic"
        )
    if data.packed_length is not None and data.packed_length < model.encoder_seq_length:
        yield (
            f"model.data.packed_length={data.packed_length} is shorter than model.encoder_seq_length="
            f"{model.encoder_seq_length}, the longest sample: raise the former or lower the latter"
        )


def _steps(cfg: DictConfig, world_size: int) -> Iterator[str]:
    trainer, optim = cfg.trainer, cfg.model.optim
    for steps in trainer.get("skip_steps") or []:
        if len(steps) != 2 or not 1 <= steps[0] <= steps[1]:
            yield f"trainer.skip_steps holds {list(steps)}, expected [first, last] such as [100, 110]"
    if trainer.max_steps == 0 or trainer.max_epochs == 0:
        yield "trainer.max_steps=0 or trainer.max_epochs=0 trains nothing: give a number above 0, or -1"
    if trainer.max_steps == -1 and trainer.max_epochs in (-1, None):
        yield "trainer.max_steps=-1 and trainer.max_epochs=-1 never end: give one of them a positive number"
    if optim.cpu_offload and (trainer.precision == 32 or cfg.model.fsdp):
        yield (
            f"model.optim.cpu_offload=true with trainer.precision={trainer.precision} and model.fsdp="
            f"{as_override(cfg.model.fsdp)}: it moves main weights of 16-bit training; use bf16 or 16, and with FSDP "
            "model.fsdp_cpu_offload instead"
        )
    if optim.sched.min_lr > optim.lr:
        yield f"model.optim.sched.min_lr={optim.sched.min_lr:g} exceeds model.optim.lr={optim.lr:g}"


def _sources(cfg: DictConfig, world_size: int) -> Iterator[str]:
    model, mm_cfg = cfg.model, cfg.model.mm_cfg
    is_frozen = mm_cfg.llm.freeze and mm_cfg.vision_encoder.freeze and mm_cfg.mm_mlp_adapter_freeze
    is_frozen = is_frozen and not has_adapters(model)
    if cfg.trainer.skip_train and model.data.validation is None and not model.data.validation_split:
        yield (
            "trainer.skip_train=true validates, but nothing is held out: give model.data.validation or "
            "model.data.validation_split"
        )
    if is_frozen and not cfg.trainer.skip_train:
        yield "language model, tower and projector are all frozen, nothing is left to train: free one of them"
    if model.restore_from_path is not None and mm_cfg.pretrain_mm_mlp_adapter is not None:
        yield (
            f"model.restore_from_path={model.restore_from_path} and model.mm_cfg.pretrain_mm_mlp_adapter="
            f"{mm_cfg.pretrain_mm_mlp_adapter} both bring a projector: set one of them to null"
        )
    tokenizer = model.tokenizer
    for library, key in (("huggingface", "type"), ("sentencepiece", "model")):
        if tokenizer.library == library and tokenizer[key] is None:
            yield f"model.tokenizer.library={library} also needs model.tokenizer.{key}"
    wandb = cfg.exp_manager.create_wandb_logger
    if wandb and cfg.exp_manager.wandb_logger_kwargs.project is None:
        yield "exp_manager.create_wandb_logger=true also needs exp_manager.wandb_logger_kwargs.project"
