"""`neva train`: from a resolved configuration to a trained `.nemo`."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Timer
from nemo.utils import logging as nemo_logging
from nemo.utils.exp_manager import exp_manager
from omegaconf import DictConfig, OmegaConf

from neva.config.derive import total_steps
from neva.config.paths import run_folder
from neva.config.samples import row_length
from neva.config.tower import vision_config_of
from neva.data.held_out import training_records
from neva.data.loader import killed_worker, packs_per_epoch
from neva.data.tokenizer import load_tokenizer
from neva.distributed import accelerator, consistency, launch
from neva.distributed.groups import ParallelSizes
from neva.distributed.launch_environment import restored_environment, settle
from neva.distributed.local_processes import require_program
from neva.distributed.session import ProcessSession
from neva.precision import set_matmul_precision
from neva.training.callbacks import CheckpointLogger, MetricsFile, Progress, SkippedRecords
from neva.training.checkpoints import as_nemos_own
from neva.training.cluster import cluster_environment
from neva.training.determinism import deterministic
from neva.training.module import MegatronNevaModel
from neva.training.replay import Replay
from neva.training.run_folder import finished_step, locked, refuse_overwriting, resume_points
from neva.training.sample_ledger import SampleLedger
from neva.training.samples import Samples
from neva.training.source_losses import SourceLosses
from neva.training.spike import SpikeAlert
from neva.training.start import Start, find_start, standing_of
from neva.training.stopping import StopOnSignal, Stopped
from neva.training.strategy import MegatronStrategy
from neva.training.throughput import Throughput
from neva.training.validation import Validation
from neva.training.waste import WasteReport

logger = logging.getLogger(__name__)


def train(cfg: DictConfig) -> Path:
    """Trains as `cfg` says, resuming from the run folder's last checkpoint if there is one.

    Args:
        cfg: the resolved and validated configuration tree.

    Returns:
        The run folder: checkpoints, metrics, the loss curve and the final `.nemo`. With `trainer.skip_train` nothing
        is written, and the loss of what is held out stands in the log.

    Raises:
        SystemExit: on rank 0 with a code of `stopping`, when a signal told the run to stop and it has saved.
        UserError: what the user can mend; of several processes, the same on all.
    """
    with restored_environment(), deterministic(bool(cfg.trainer.get("deterministic"))):
        place = launch.identify(cfg.trainer.devices, cfg.trainer.num_nodes)
        settle(place)
        require_program(place, cfg.trainer.devices)
        cfg.trainer.max_steps = last_step(cfg)
        if cfg.trainer.replay is not None:
            _look(cfg, Replay(), Path(cfg.trainer.replay))
            return run_folder(cfg)
        if cfg.trainer.skip_train:
            # changes no weight here; an optimizer without parameters cannot be built
            cfg.model.mm_cfg.mm_mlp_adapter_freeze = False
            _look(cfg, Validation(cfg.trainer))
            return run_folder(cfg)
        if (step := finished_step(cfg)) is not None:
            logger.info(
                "%s is already at step %s of %s: raise trainer.max_steps to go on, or choose another exp_manager.name",
                run_folder(cfg),
                step,
                cfg.trainer.max_steps,
            )
            return run_folder(cfg)
        refuse_overwriting(cfg)
        with locked(run_folder(cfg), is_writer=place.rank == 0):
            return _train(cfg, is_writer=place.rank == 0)


def _train(cfg: DictConfig, is_writer: bool) -> Path:
    quiet_libraries()
    set_matmul_precision(cfg.trainer.precision)
    start = find_start(cfg, is_writer)
    trainer = build_trainer(cfg)
    with as_nemos_own():
        run_dir = Path(exp_manager(trainer, as_nemo_reads(cfg.exp_manager, start.checkpoints)))
    _continue_from(trainer, start)
    callbacks: Any = trainer.callbacks  # type: ignore[attr-defined]
    source_losses = SourceLosses(cfg.trainer.log_every_n_steps)
    asides: list[Validation | Samples] = [Validation(cfg.trainer)]
    if cfg.trainer.samples.prompt_file is not None:
        asides.append(Samples(cfg.trainer.samples, run_dir))
    callbacks[:0] = [SampleLedger(run_dir), *asides, source_losses]
    throughput = Throughput(cfg, asides)
    callbacks += [
        throughput,
        MetricsFile(run_dir, [source_losses, throughput, *asides]),
        Progress(asides),
        SkippedRecords(),
        WasteReport(row_length(cfg.model)),
    ]
    if (ratio := cfg.trainer.get("loss_spike_ratio")) is not None:
        callbacks.append(SpikeAlert(ratio))
    if cfg.exp_manager.checkpoint_callback_params.verbose:
        callbacks.append(CheckpointLogger())
    if trainer.is_global_zero:
        OmegaConf.save(cfg, run_dir / "config.yaml", resolve=True)
    if cfg.exp_manager.create_preemption_callback:
        callbacks.append(StopOnSignal())
    # NeMo's ends the run from within a step, which the other callbacks must have seen
    callbacks.sort(key=lambda callback: isinstance(callback, Timer))
    _fit(cfg, trainer, run_dir)
    return run_dir


def _look(cfg: DictConfig, callback: Callback, replayed: Path | None = None) -> None:
    """Runs a callback on the weights that a run would go on from, before or in a step; nothing is written."""
    quiet_libraries()
    set_matmul_precision(cfg.trainer.precision)
    cfg.trainer.max_steps += 1  # a finished run has no step left to stand before
    trainer = build_trainer(cfg)
    named = cfg.exp_manager.resume_from_checkpoint
    checkpoints = resume_points(cfg) if named is None else [Path(named)]
    ema = cfg.exp_manager.ema
    takes_average = ema.enable and not ema.validate_original_weights and replayed is None
    _continue_from(trainer, Start(tuple(checkpoints), load_optim=False, takes_average=takes_average))
    callbacks: Any = trainer.callbacks  # type: ignore[attr-defined]
    callbacks.append(callback)
    with warnings.catch_warnings():  # the callback that wrote the checkpoint writes none now
        warnings.filterwarnings("ignore", "Be aware that when using `ckpt_path`")
        _fit(cfg, trainer, run_folder(cfg), replayed)


def _continue_from(trainer: Trainer, start: Start) -> None:
    """Has the trainer read the first checkpoint, or where its files have changed the next; none: it starts afresh."""
    strategy: Any = trainer.strategy
    strategy.start = start
    if start.checkpoints:
        trainer.ckpt_path = str(start.checkpoints[0])


def _fit(cfg: DictConfig, trainer: Trainer, run_dir: Path, replayed: Path | None = None) -> None:
    skipped = cfg.trainer.get("skip_steps") if replayed is None else None
    skip_steps = OmegaConf.to_container(skipped or OmegaConf.create([]))
    module = MegatronNevaModel(cfg, trainer, run_dir, skip_steps, replayed)  # type: ignore[arg-type]
    try:
        trainer.fit(module)
    except Stopped as stop:
        raise SystemExit(stop.status if trainer.is_global_zero else 0) from None
    except Exception as error:
        session: ProcessSession = trainer.strategy.session  # type: ignore[attr-defined]
        if session.user_error is not None:
            raise session.user_error from None
        if (killed := killed_worker(error)) is not None:
            raise killed from None
        raise


def as_nemo_reads(manager: DictConfig, checkpoints: Sequence[Path]) -> DictConfig:
    """Returns `exp_manager` with the first of `checkpoints`, if any: NeMo itself would take none but a `-last`.

    NeMo's own callbacks for SIGTERM, on GPUs only and for rank 0 only, and for the moving average, which knows no main
    weights, are left out.
    """
    chosen: dict[str, Any] = {"create_preemption_callback": False, "ema": {"enable": False}}
    if checkpoints:
        chosen |= {"resume_from_checkpoint": str(checkpoints[0]), "resume_ignore_no_checkpoint": True}
    merged = OmegaConf.merge(manager, chosen)
    assert isinstance(merged, DictConfig)
    return merged


def last_step(cfg: DictConfig) -> int:
    """Returns the number of optimizer steps: `trainer.max_steps`, or what `trainer.max_epochs` makes of the data."""
    if cfg.trainer.max_epochs in (None, -1):
        return cfg.trainer.max_steps
    model, data = cfg.model, cfg.model.data
    if data.packed_sequence:
        num_rows = packs_per_epoch(model, vision_config_of(model), load_tokenizer(model.tokenizer))
    else:
        num_rows = len(training_records(data))
    return total_steps(cfg.trainer, num_rows, model.global_batch_size, model.drop_last, standing_of(cfg))


def quiet_libraries() -> None:
    """Keeps warnings and errors of NeMo and Lightning, drops their reports of every setting."""
    nemo_logging.setLevel(nemo_logging.WARNING)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # neva.distributed.launch knows where srun is needed; Lightning asks for it wherever it is installed
    warnings.filterwarnings("ignore", message="The `srun` command is available")
    # of a run folder that was moved; the best checkpoints are found by their names
    warnings.filterwarnings("ignore", message="The dirpath has changed from")
    logging.getLogger("nv_one_logger").setLevel(logging.ERROR)  # NeMo's telemetry, which nobody asked for


def build_trainer(cfg: DictConfig) -> Trainer:
    """Builds the Lightning trainer: its loops and hooks; batches, gradients and precision are Megatron's."""
    model, trainer = cfg.model, cfg.trainer
    accelerator.choose(trainer.accelerator)
    layout = ParallelSizes(
        tensor=model.tensor_model_parallel_size,
        pipeline=model.pipeline_model_parallel_size,
        context=model.context_parallel_size,
        virtual_pipeline=model.virtual_pipeline_model_parallel_size,
        expert=model.expert_model_parallel_size,
    )
    fingerprint = partial(consistency.fingerprint, cfg)
    async_save = cfg.exp_manager.checkpoint_callback_params.async_save
    session = ProcessSession(fingerprint, trainer.distributed_timeout_s, trainer.join_timeout_s)
    fixed: dict[str, Any] = {
        "max_epochs": -1,  # the loader runs across epochs and ends with the last step
        "use_distributed_sampler": False,
        "enable_checkpointing": False,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "limit_val_batches": 0,  # `Validation` reads the held-out set
    }
    return Trainer(
        strategy=MegatronStrategy(layout, model.seed, session, async_save),
        devices=trainer.devices,
        num_nodes=trainer.num_nodes,
        accelerator=trainer.accelerator,
        max_steps=trainer.max_steps,
        log_every_n_steps=trainer.log_every_n_steps,
        plugins=cluster_environment(launch.identify(trainer.devices, trainer.num_nodes)),
        **fixed,
    )
