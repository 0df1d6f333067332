"""What must hold between keys, once every value is known."""

from __future__ import annotations

from collections.abc import Iterator

from omegaconf import DictConfig

from neva.config.answering import inference_problems
from neva.config.experts import expert_problems
from neva.config.fsdp import fsdp_problems
from neva.config.held_out import held_out_problems, monitor_problems, sample_problems
from neva.config.layout import data_parallel_size, layers_of_stages, layout_problems
from neva.config.model_config import (
    CAUSAL,
    SECOND_ENCODER,
    image_attention_of,
    language_backend_of,
    plain,
    recorded_family,
    vision_config_of,
)
from neva.config.parts import trained_parts
from neva.config.peft import has_adapters, peft_problems
from neva.config.show import as_override
from neva.constants import PROJECTOR
from neva.errors import ConfigError
from neva.families.configs import ALL
from neva.families.connector import connector_named
from neva.families.language import HUGGING_FACE
from neva.families.rope import check_scaling
from neva.families.tower_adapters import layer_matrices
from neva.families.vision import hidden_states, vision_family
from neva.registry import LANGUAGE_FAMILIES, SAMPLERS


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
            _sizes,
            _batch,
            _packing,
            _steps,
            _recompute,
            _compile,
            _backend,
            _connector,
            _tower_adapters,
            _sources,
            _loss,
            held_out_problems,
            monitor_problems,
            sample_problems,
            _start,
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


def _loss(cfg: DictConfig, world_size: int) -> Iterator[str]:
    if cfg.model.loss_average == "micro_batch" and cfg.model.context_parallel_size > 1:
        yield (
            f"model.loss_average=micro_batch with model.context_parallel_size={cfg.model.context_parallel_size}: no "
            "rank has a whole micro batch then; set loss_average=token or the size to 1"
        )


def _sizes(cfg: DictConfig, world_size: int) -> Iterator[str]:
    model = cfg.model
    tower = model.mm_cfg.vision_encoder
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
    yield from _tower_sizes(tower, "vision_encoder")
    if (second := model.mm_cfg.get(SECOND_ENCODER)) is not None:
        yield from _tower_sizes(second, SECOND_ENCODER)
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


def _recompute(cfg: DictConfig, world_size: int) -> Iterator[str]:
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


def _compile(cfg: DictConfig, world_size: int) -> Iterator[str]:
    model = cfg.model
    if not model.torch_compile:
        return
    if language_backend_of(model) == HUGGING_FACE or model.num_moe_experts is not None:
        kind = "experts" if model.num_moe_experts is not None else "model.language_backend=huggingface"
        yield f"model.torch_compile=true with {kind}: layers of Megatron's without experts are compiled; leave it out"


def _backend(cfg: DictConfig, world_size: int) -> Iterator[str]:
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


def _connector(cfg: DictConfig, world_size: int) -> Iterator[str]:
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


def _tower_adapters(cfg: DictConfig, world_size: int) -> Iterator[str]:
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
