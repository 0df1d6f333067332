"""`neva infer`: prompts from a file through a `.nemo`, one result line each."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from tqdm import tqdm

from neva.distributed import accelerator, groups
from neva.errors import DataError
from neva.inference.answer import answer_all
from neva.inference.load import load_configured
from neva.inference.prompts import read_requests
from neva.inference.results import Results, result_row

logger = logging.getLogger(__name__)


def run(cfg: DictConfig) -> Path:
    """Answers the prompts of `cfg.prompt_file` and appends results to `cfg.output_file` as they come.

    A result file that is there is continued behind its last complete line; prompts whose line holds an error are asked
    again, and no others.

    Returns:
        The result file.

    Raises:
        ConfigError: a prompt file, an image or a result line that cannot be used, or a part of the model that is
            missing.
        DataError: prompts could not be asked; their lines say why, the others have their answers.
    """
    settings = cfg.inference
    requests = read_requests(
        Path(cfg.prompt_file), Path(settings.images_base_path), settings.insert_image_token
    )
    results = Results(Path(cfg.output_file), requests)
    todo = results.unanswered()
    if not todo:
        logger.info("%s answers all %s prompts already", results.path, len(requests))
        return results.path
    accelerator.choose(cfg.trainer.accelerator)
    device = groups.init_process_group(rank=0, world_size=1)
    groups.init_model_parallel(groups.ParallelSizes(), seed=settings.seed)
    try:
        assistant = load_configured(cfg, device)
        bar = tqdm(
            total=len(requests), initial=len(requests) - len(todo), unit="prompt", desc="infer", disable=None
        )
        for answers in answer_all(assistant, settings, {number: requests[number] for number in todo}):
            rows: dict[int, dict[str, Any]] = {
                number: result_row(requests[number], answer, cfg.neva_model_file)
                for number, answer in answers.items()
            }
            results.add(rows)
            bar.update(len(rows))
        bar.close()
    finally:
        groups.destroy()
    _refuse_errors(results)
    return results.path


def _refuse_errors(results: Results) -> None:
    failed = results.unanswered()
    if failed:
        raise DataError(
            f"{len(failed)} of {len(results.rows)} prompts could not be asked, the others are answered in "
            f"{results.path}; the first: prompt {failed[0] + 1}: {results.rows[failed[0]]['error']}. Mend them and run "
            "again: only they are asked"
        )
