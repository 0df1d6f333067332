"""`neva infer`: prompts from a file through a `.nemo`, one result line each, on one process or several."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from tqdm import tqdm

from neva.config.paths import model_source
from neva.distributed import accelerator, consistency, groups, launch
from neva.distributed.launch_environment import restored_environment
from neva.distributed.local_processes import start_others
from neva.distributed.session import ProcessSession
from neva.errors import DataError
from neva.inference.answer import Answer, answer_all
from neva.inference.exchange import at_rank_0, share
from neva.inference.load import load_configured
from neva.inference.prompts import Request, read_requests
from neva.inference.results import Results, answered_by, result_row, written_by_one

logger = logging.getLogger(__name__)

JOIN_TIMEOUT_S, COLLECTIVE_TIMEOUT_S = 600.0, 1800.0


def run(cfg: DictConfig) -> Path:
    """Answers the prompts of `cfg.prompt_file` and appends results to `cfg.output_file` as they come.

    A result file that is there is continued behind its last complete line; prompts whose line holds an error are asked
    again, and no others; one with answers of another model is refused. Of several processes, those of a copy of the
    model answer together, and the copies share the prompts; rank 0 writes.

    Returns:
        The result file.

    Raises:
        ConfigError: a prompt file, an image or a result line that cannot be used, or a part of the model that is
            missing; another command writes the same file.
        DataError: prompts could not be asked; their lines say why, the others have their answers.
    """
    settings = cfg.inference
    requests = read_requests(
        Path(cfg.prompt_file), Path(settings.images_base_path), settings.insert_image_token
    )
    path = Path(cfg.output_file)
    with restored_environment(), ExitStack() as written:
        place = launch.identify(cfg.trainer.devices, cfg.trainer.num_nodes)
        results = None
        if place.rank == 0:
            written.enter_context(written_by_one(path))
            results = Results(path, requests, answered_by(model_source(cfg)))
        if results is not None and place.world_size == 1 and not results.unanswered():
            logger.info("%s answers all %s prompts already", results.path, len(requests))
            return results.path
        with processes(cfg, place) as session:
            todo = groups.gathered(results.unanswered() if results else [])[0]
            if todo:
                _answer(cfg, session, requests, todo, results)
    if results is not None:
        _refuse_errors(results)
    return path


@contextmanager
def processes(cfg: DictConfig, place: launch.Launch) -> Iterator[ProcessSession]:
    """Starts the other processes of this node, if nobody has, and meets all of them in the layout of `cfg`."""
    accelerator.choose(cfg.trainer.accelerator)
    children = start_others(place, cfg.trainer.devices)
    session = ProcessSession(partial(consistency.fingerprint, cfg), COLLECTIVE_TIMEOUT_S, JOIN_TIMEOUT_S)
    try:
        session.start(
            place.rank,
            place.world_size,
            os.environ.get("MASTER_ADDR", ""),
            int(os.environ.get("MASTER_PORT", 0)),
            place.local_rank,
            children,
        )
        groups.init_model_parallel(
            groups.ParallelSizes(cfg.tensor_model_parallel_size, cfg.pipeline_model_parallel_size),
            cfg.inference.seed,
            COLLECTIVE_TIMEOUT_S,
        )
        yield session
    except BaseException as error:
        session.report_failure(error)
        session.close()
        if session.user_error is not None:
            raise session.user_error from None
        raise
    finally:
        groups.destroy()
        session.close()


def _answer(
    cfg: DictConfig,
    session: ProcessSession,
    requests: Sequence[Request],
    todo: Sequence[int],
    results: Results | None,
) -> None:
    """Has this rank answer its share of the prompts `todo`, and rank 0 write what all of them say."""
    assistant = load_configured(cfg, session.device)
    answers = answer_all(assistant, cfg.inference, {number: requests[number] for number in share(todo)})
    hidden = None if results is not None else True
    bar = tqdm(
        total=len(requests), initial=len(requests) - len(todo), unit="prompt", desc="infer", disable=hidden
    )
    for said in at_rank_0(session.store, todo, answers):
        assert results is not None  # of rank 0, which alone is told
        rows: dict[int, dict[str, Any]] = {}
        for number, answer in said.items():
            rows[number] = result_row(requests[number], answer, results.model)
            if isinstance(answer, Answer) and answer.distributions_TV is not None:
                rows[number]["full_logprob"] = results.keep(number, answer.distributions_TV)
        results.add(rows)
        bar.update(len(rows))
    bar.close()


def _refuse_errors(results: Results) -> None:
    failed = results.unanswered()
    if failed:
        raise DataError(
            f"{len(failed)} of {len(results.rows)} prompts could not be asked, the others are answered in "
            f"{results.path}; the first: prompt {failed[0] + 1}: {results.rows[failed[0]]['error']}. Mend them and run "
            "again: only they are asked"
        )
