"""`--dry-run`: what a run would need, build, read and write, asked of every room, without running it."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from neva.commands.dry_run_report import ReportedPart, print_report
from neva.config.paths import model_source, path_problems, run_folder
from neva.findings import Findings

RESOLVED_FILE = "resolved.yaml"


def dry_run(cfg: DictConfig, output: Path | None) -> int:
    """Prints the report on a loaded tree and writes the tree to `output` (else into the run folder).

    Returns:
        0 when the run could start, 1 when something is missing; all of it is printed first.
    """
    from neva.distributed.preflight import find_launch

    found, parts = Findings(), []
    find_launch(cfg.trainer, found)
    found.problems += path_problems(cfg)
    if "model" in cfg:
        parts = _training(cfg, found)
    else:
        _inference(cfg, found)
    _write(cfg, output or run_folder(cfg) / RESOLVED_FILE, found)
    print_report(found, parts, cfg.exp_manager.name if "exp_manager" in cfg else str(model_source(cfg)))
    return 1 if found.problems else 0


def _training(cfg: DictConfig, found: Findings) -> list[ReportedPart]:
    from neva.checkpoint.preflight import find_disk, note_resume
    from neva.config.derive import BEGINNING
    from neva.data.preflight import find_samples
    from neva.distributed.preflight import lone_process, note_gpus
    from neva.model.preflight import find_image, find_machine, find_share, part_sizes
    from neva.optim.preflight import find_average, find_batch, find_steps
    from neva.planner.preflight import find_memory
    from neva.weights.preflight import note_random_parts, saved_parts

    with lone_process(cfg.model.seed):
        sizes = part_sizes(cfg.model)
    kept = saved_parts(cfg.model, [size.name for size in sizes if size.trained], found)
    parts = [ReportedPart(size, size.name in kept) for size in sizes]
    find_share(sizes, found)
    find_image(cfg.model, found)
    find_machine(cfg.model, found)
    find_batch(cfg, found)
    num_samples = find_samples(cfg.model, found)
    # with Megatron, which is imported quietly by now
    from neva.training.start import standing_of

    standing = BEGINNING if num_samples is None else standing_of(cfg)
    steps = find_steps(cfg, num_samples, standing, found)
    saved = sum(part.size.total for part in parts if part.is_saved)
    trained = sum(size.trained for size in sizes)
    find_average(cfg, trained, steps, found)
    find_disk(cfg, saved, trained, steps, found)
    find_memory(cfg, found)
    note_random_parts(cfg.model, found)
    note_resume(cfg, found)
    note_gpus(cfg.trainer, found)
    return parts


def _inference(cfg: DictConfig, found: Findings) -> None:
    from neva.inference.preflight import find_model, find_prompts

    find_model(cfg, found)
    find_prompts(cfg, found)


def _write(cfg: DictConfig, path: Path, found: Findings) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(cfg, path)
    except OSError as error:
        found.problems.append(f"the resolved configuration cannot be written to {path}: {error.strerror}")
    else:
        found.add("configuration", f"resolved tree written to {path}")
