"""`exp_manager.*`: what nemo.utils.exp_manager is given. Optional keys have NeMo's own defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from neva.config.keys.field import ignored, key, refused, section

_NO_EARLY_END = (
    "a run goes on to its last step; monitor=val_loss with mode=min keeps the checkpoints that validate best"
)


@dataclass
class CheckpointCallbackParams:
    """Which checkpoints are kept."""

    monitor: str = key("Logged value that ranks the checkpoints.")
    verbose: bool = key("Log every save.")
    save_last: bool = key("Keep the newest checkpoint, which resume starts from.")
    save_top_k: int = key("How many others are kept, the best ones; -1: all.", low=-1, common=True)
    mode: str = key("Whether a larger or a smaller monitored value is better.", choices=("max", "min"))
    every_n_train_steps: int = key("Steps between two checkpoints.", low=1, common=True)
    train_time_interval: str | None = key(
        "Longest time between two checkpoints, besides every_n_train_steps; null: any.",
        pattern=r"^(?!0+(:0+){3}$)\d+(:\d\d){3}$",
        form="DD:HH:MM:SS, more than 0",
    )
    async_save: bool = key("Train on while a checkpoint is written.", common=True)
    every_n_epochs: int = key("NeMo wants 0 beside every_n_train_steps.", choices=(0,))
    always_save_nemo: bool = key("A .nemo beside every checkpoint.")
    save_nemo_on_train_end: bool = key("A .nemo at the end of training.")
    filename: str = key("Name of a checkpoint, with logged values in braces.")
    model_parallel_size: int = key("Tensor times pipeline parallel size.", low=1)
    dirpath: str | None = key("Checkpoint folder; null: checkpoints/ in the run folder.", optional=True)

    save_on_train_epoch_end: Any = ignored(
        "the newest checkpoint is always saved at the end; between, every_n_train_steps decides"
    )
    save_weights_only: Any = refused(False, why="a checkpoint without optimizer state cannot be resumed")
    save_best_model: Any = refused(False, why=_NO_EARLY_END)
    save_last_n_optim_states: Any = refused(None, -1, why="every kept checkpoint has its optimizer state")


@dataclass
class WandbLoggerKwargs:
    """Given to lightning's WandbLogger."""

    project: str | None = key("Project; needed with create_wandb_logger.")
    name: str | None = key("Name of the run; null: exp_manager.name.")
    entity: str | None = key("Team or user.", optional=True)
    group: str | None = key("Group of runs.", optional=True)
    tags: list[str] | None = key("Tags.", optional=True)
    offline: bool = key("Write locally, send later.", optional=True)


@dataclass
class Ema:
    """Exponential moving average of the weights that train."""

    enable: bool = key("Keep the average, in checkpoints and in a second .nemo, NAME-EMA.nemo.", common=True)
    decay: float = key("What an update keeps of the average.", low=0, high=1)
    validate_original_weights: bool = key(
        "Validate and answer samples with the weights, not with their average."
    )
    every_n_steps: int = key("Steps from one update to the next.", low=1)
    cpu_offload: bool = key("The average lies in CPU memory.")


@dataclass
class ExpManager:
    """Run folder, loggers, checkpoints, resume."""

    explicit_log_dir: str | None = key("Run folder, instead of exp_dir/name.")
    exp_dir: str | None = key(
        "Where run folders go; null: nemo_experiments/, on Vertex AI where it says.", common=True
    )
    name: str = key(
        "Name of the run, its folder and its .nemo; exp_dir is the folder that it lies in.",
        pattern=r"^(?!\.)[^/{}]*[^/{}\s][^/{}]*$",
        form="a name without / { } or a point in front",
        common=True,
    )
    create_tensorboard_logger: bool = key("Write TensorBoard events.")
    create_wandb_logger: bool = key("Log to Weights & Biases.", common=True)
    wandb_logger_kwargs: WandbLoggerKwargs = section()
    resume_if_exists: bool = key("Continue from the last checkpoint of the run folder.", common=True)
    resume_ignore_no_checkpoint: bool = key("Start afresh when there is none.")
    resume_from_checkpoint: str | None = key(
        "Checkpoint to continue from; set by model.resume_from_checkpoint."
    )
    create_checkpoint_callback: bool = key("Save checkpoints and the .nemo; false: nothing is kept.")
    checkpoint_callback_params: CheckpointCallbackParams = section()
    version: str | None = key("Subfolder of the run folder.", optional=True)
    use_datetime_version: bool = key("Name that subfolder by date when runs are not resumed.", optional=True)
    resume_past_end: bool = key("Also resume from a finished run.", optional=True)
    summary_writer_kwargs: dict[str, Any] | None = key("Given to TensorBoard's SummaryWriter.", optional=True)
    create_preemption_callback: bool = key("Save and stop on SIGTERM, SIGUSR1 or Ctrl-C.")
    files_to_copy: list[str] | None = key("Files copied into the run folder.", optional=True)
    log_step_timing: bool = key("Log the time of a step.", optional=True)
    max_time_per_run: str | None = key(
        "Stop and save after this time.", optional=True, pattern=r"^\d+(:\d\d){3}$", form="DD:HH:MM:SS"
    )
    seconds_to_sleep: float = key(
        "Wait of the other ranks while rank 0 makes the folder.", low=0, optional=True
    )
    ema: Ema = section()

    create_early_stopping_callback: Any = refused(False, why=_NO_EARLY_END)
    create_mlflow_logger: Any = refused(False, why="neva logs to TensorBoard and Weights & Biases only")
    create_dllogger_logger: Any = refused(False, why="neva logs to TensorBoard and Weights & Biases only")
    create_clearml_logger: Any = refused(False, why="neva logs to TensorBoard and Weights & Biases only")
    create_neptune_logger: Any = refused(False, why="neva logs to TensorBoard and Weights & Biases only")
    create_straggler_detection_callback: Any = refused(False, why="neva does not detect stragglers")
    create_fault_tolerance_callback: Any = refused(
        False, why="neva does not use NVIDIA's fault tolerance launcher"
    )
    log_delta_step_timing: Any = ignored("log_step_timing already logs the time of a step")
