"""`neva train --dry-run`: what a run would need, build, read and write, without running it."""

import os
import shutil
import warnings
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from neva.commands.dry_run_report import Report, show
from neva.config.derive import total_steps
from neva.config.layout import data_parallel_size
from neva.config.model_config import language_config_of, vision_config_of
from neva.config.parts import trained_parts
from neva.config.paths import path_problems, run_folder
from neva.config.validate import world_size
from neva.distributed import launch
from neva.errors import ConfigError
from neva.families.media_tokens import tokens_per_image
from neva.formats.nemo_header import nemo_config

PROBED_SAMPLES = 16
"""Records, evenly spaced, that are really read, decoded and tokenised."""

RESOLVED_FILE = "resolved.yaml"

BYTES = {"32": 4, "bf16": 2, "16": 2}
OPTIMIZER_BYTES = {"32": 8, "bf16": 12, "16": 12}
"""Bytes of optimizer state for one trained parameter: Adam's two float32 moments and, in 16 bits, a float32 weight."""


def dry_run(cfg: DictConfig, output: Path | None) -> int:
    """Print the report on a loaded tree and write the tree to `output` (else into the run folder).

    Returns:
        0 when the run could start, 1 when something is missing; all of it is printed first.
    """
    report = Report(problems=[*_launch_problems(cfg), *path_problems(cfg)])
    if "model" in cfg:
        _training(cfg, report)
    else:
        _inference(cfg, report)
    _write(cfg, output or run_folder(cfg) / RESOLVED_FILE, report)
    show(report, cfg.exp_manager.name if "exp_manager" in cfg else cfg.neva_model_file)
    return 1 if report.problems else 0


def _launch_problems(cfg: DictConfig) -> list[str]:
    """What the environment says of a launch must fit; that it says nothing yet is no problem before the start."""
    if launch.is_stated():
        try:
            launch.identify(cfg.trainer.devices, cfg.trainer.num_nodes)
        except ConfigError as error:
            return [str(error)]
    return []


def _training(cfg: DictConfig, report: Report) -> None:
    _count_parameters(cfg, report)
    tower, model = vision_config_of(cfg.model), cfg.model
    positions = tokens_per_image(tower, model.mm_cfg.mm_mlp_adapter_type)
    report.add(
        "image",
        f"{positions} positions ({tower.image_size} px, patches of {tower.patch_size} px) "
        f"of at most {model.encoder_seq_length:,} in a sequence",
    )
    _batch(cfg, report)
    num_samples = _samples(cfg, report)
    steps = _steps(cfg, num_samples, report)
    _disk(cfg, steps, report)
    _warnings(cfg, steps, report)


def _count_parameters(cfg: DictConfig, report: Report) -> None:
    mm_cfg = cfg.model.mm_cfg
    folders = {
        "vision_tower": mm_cfg.vision_encoder.from_pretrained,
        "projector": None,
        "language_model": mm_cfg.llm.from_pretrained,
    }
    for part, (total, trained) in _counts(cfg).items():
        # what is frozen and can be read again from its folder is not saved
        saved = trained > 0 or folders[part] is None or cfg.model.restore_from_path is not None
        report.parts.append((part, total, trained, saved))


def _counts(cfg: DictConfig) -> dict[str, tuple[int, int]]:
    """All and trained parameters by part, of the model that training builds, on the meta device."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Megatron's, about optional packages that neva does not use
        import torch.distributed as dist

        from neva.distributed import cuda_on_cpu, groups
        from neva.model.build import count_parameters, meta_model, set_trainable

        cuda_on_cpu.install()
        # a store of its own: the launch environment of a real run must not be waited for
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        try:
            groups.init_model_parallel(groups.ParallelSizes(), seed=cfg.model.seed)
            mm_cfg = cfg.model.mm_cfg
            model = meta_model(
                vision_config_of(cfg.model), language_config_of(cfg.model), mm_cfg.mm_mlp_adapter_type
            )
        finally:
            groups.destroy()
    set_trainable(model, trained_parts(cfg.model))
    return count_parameters(model)


def _batch(cfg: DictConfig, report: Report) -> None:
    model = cfg.model
    replicas = data_parallel_size(cfg.model, world_size(cfg.trainer))
    accumulation = model.global_batch_size // (model.micro_batch_size * replicas)
    report.add(
        "global batch",
        f"{model.global_batch_size} = micro batch {model.micro_batch_size} x accumulation {accumulation} "
        f"x data parallel {replicas} ({cfg.trainer.num_nodes} x {cfg.trainer.devices} devices)",
    )


def _samples(cfg: DictConfig, report: Report) -> int | None:
    """Number of samples, None when the data cannot be read; the probed ones are really prepared."""
    from neva.data.sources.source import open_source

    data = cfg.model.data
    if not Path(data.data_path).is_file():
        report.add("samples", "unknown")
        return None
    try:
        num_samples = len(open_source(data.data_path, list(data.datasets_exclude)))
    except ValueError as error:
        report.problems.append(str(error))
        return None
    report.add("samples", f"{num_samples:,}")
    if not report.problems:
        _probe(cfg, report)
    return num_samples


def _probe(cfg: DictConfig, report: Report) -> None:
    """Prepare a few samples with the dataset that training uses."""
    from neva.data.dataset import build_dataset
    from neva.data.tokenizer import load_tokenizer
    from neva.errors import SampleError

    try:
        tokenizer = load_tokenizer(cfg.model.tokenizer)
        dataset = build_dataset(cfg.model, vision_config_of(cfg.model), tokenizer)
    except ValueError as error:
        report.problems.append(str(error))
        return
    lengths, stride = [], max(1, len(dataset) // PROBED_SAMPLES)
    for index in range(0, len(dataset), stride)[:PROBED_SAMPLES]:
        try:
            lengths.append(len(dataset[index].input_ids))
        except SampleError as error:
            report.problems.append(str(error))
    if lengths:
        line = f"{sum(lengths) / len(lengths):.0f} positions on average, {max(lengths)} at most"
        report.add("lengths", f"{line} ({len(lengths)} samples read)")
    if dataset.skipped_count:
        report.notes.append(f"{dataset.skipped_count} records around the samples read were skipped as broken")


def _steps(cfg: DictConfig, num_samples: int | None, report: Report) -> int | None:
    """Optimizer steps of the run, None when they follow from data that is not there."""
    trainer, batch = cfg.trainer, cfg.model.global_batch_size
    per_epoch = "unknown" if num_samples is None else f"{num_samples // batch:,}"
    if num_samples is None and trainer.max_steps <= 0:
        report.add("steps", f"trainer.max_epochs={trainer.max_epochs}; the number follows from the data")
        return None
    try:
        steps = trainer.max_steps if num_samples is None else total_steps(trainer, num_samples, batch)
    except ConfigError as error:
        report.problems.append(str(error))
        return None
    report.add("steps", f"{steps:,} in all ({steps * batch:,} samples), {per_epoch} in an epoch")
    return steps


def _disk(cfg: DictConfig, steps: int | None, report: Report) -> None:
    precision, kept = str(cfg.trainer.precision), cfg.exp_manager.checkpoint_callback_params
    weights = sum(total for _, total, _, saved in report.parts if saved) * BYTES[precision]
    state = sum(trained for _, _, trained, _ in report.parts) * OPTIMIZER_BYTES[precision]
    copies = 0
    if cfg.exp_manager.create_checkpoint_callback:
        saves = None if steps is None else max(1, steps // kept.every_n_train_steps)
        ranked = [
            number
            for number in (kept.save_top_k if kept.save_top_k >= 0 else None, saves)
            if number is not None
        ]
        copies = (min(ranked) if ranked else 1) + kept.save_last
    nemo = weights if kept.save_nemo_on_train_end and cfg.exp_manager.create_checkpoint_callback else 0
    needed = copies * (weights + state) + nemo
    folder = run_folder(cfg).resolve()
    nearest = next(path for path in (folder, *folder.parents) if path.is_dir())
    free = shutil.disk_usage(nearest).free + _size(folder)
    report.add(
        "disk",
        f"{copies} checkpoints x {_gigabytes(weights + state)} + .nemo {_gigabytes(nemo)} = {_gigabytes(needed)} "
        f"of {_gigabytes(free)} free",
    )
    if needed > free:
        report.problems.append(
            f"checkpoints will take {_gigabytes(needed)}, {nearest} has {_gigabytes(free)}: lower "
            "exp_manager.checkpoint_callback_params.save_top_k or choose another exp_manager.exp_dir"
        )


def _warnings(cfg: DictConfig, steps: int | None, report: Report) -> None:
    """Notes on what is allowed, but perhaps not meant."""
    sched, mm_cfg = cfg.model.optim.sched, cfg.model.mm_cfg
    taken = sched.warmup_steps + sched.constant_steps
    if steps is not None and taken >= steps:
        report.notes.append(
            f"warmup ({sched.warmup_steps}) and constant steps ({sched.constant_steps}) fill all {steps} steps: the "
            "learning rate never decays along the cosine"
        )
    for name, section in (("tower", mm_cfg.vision_encoder), ("language model", mm_cfg.llm)):
        if section.freeze and section.from_pretrained is None and cfg.model.restore_from_path is None:
            report.notes.append(
                f"the {name} is frozen with random weights: give it from_pretrained or train it"
            )
    last = list((run_folder(cfg) / "checkpoints").glob("*-last*"))
    if last and cfg.exp_manager.resume_if_exists:
        report.notes.append(f"the run will continue from {last[0]}")
    if not cfg.exp_manager.create_checkpoint_callback:
        report.notes.append(
            "exp_manager.create_checkpoint_callback=false: the run leaves neither checkpoints nor a .nemo"
        )
    devices = _devices_here(cfg.trainer.accelerator)
    if devices < cfg.trainer.devices:
        report.notes.append(
            f"this machine has {devices} GPUs, the run asks for {cfg.trainer.devices} on each of its "
            f"{cfg.trainer.num_nodes} nodes"
        )


def _devices_here(accelerator: str) -> float:
    """GPUs of this machine where the run needs them; without limit where it does not."""
    import torch

    found = torch.cuda.device_count()
    return found if accelerator == "gpu" or found else float("inf")


def _inference(cfg: DictConfig, report: Report) -> None:
    recorded = None if not Path(cfg.neva_model_file).exists() else nemo_config(cfg.neva_model_file)
    if recorded is not None:
        report.add("model", f"{recorded['num_layers']} layers, hidden size {recorded['hidden_size']}")
        if "mm_cfg" in recorded:
            report.add("template", recorded["data"]["conv_template"])
        else:
            report.problems.append(
                f"neva_model_file: {cfg.neva_model_file} holds a language model alone; expected what a LLaVA training "
                "wrote"
            )
    prompts = Path(cfg.prompt_file)
    if prompts.is_file() and Path(cfg.inference.images_base_path).is_dir():
        _prompts(cfg, prompts, report)
    if Path(cfg.output_file).is_file():
        report.notes.append(f"{cfg.output_file} exists: answers that it holds are kept, the rest is added")


def _prompts(cfg: DictConfig, prompts: Path, report: Report) -> None:
    from neva.inference.prompts import read_requests

    settings = cfg.inference
    try:
        requests = read_requests(prompts, Path(settings.images_base_path), settings.insert_image_token)
    except ConfigError as error:
        report.problems.append(str(error))
    else:
        report.add("prompts", f"{len(requests):,} in batches of {settings.batch_size}")


def _write(cfg: DictConfig, path: Path, report: Report) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(cfg, path)
    except OSError as error:
        report.problems.append(f"the resolved configuration cannot be written to {path}: {error.strerror}")
    else:
        report.add("configuration", f"resolved tree written to {path}")


def _size(folder: Path) -> int:
    """Bytes below a folder, which new checkpoints of the same run replace."""
    return sum(
        os.path.getsize(os.path.join(root, name)) for root, _, names in os.walk(folder) for name in names
    )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e6:,.1f} MB"
