"""Answers to a few prompts while a run trains: to a file, to the loggers with their images, and scored."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from omegaconf import DictConfig, OmegaConf

from neva.data.build import build_encoder
from neva.data.media.processor import build_image_processor
from neva.data.media.reader import build_media_reader
from neva.errors import DataError
from neva.formats.atomic_write import finished_target
from neva.formats.json import json_line
from neva.inference.answer import Answer, answer_all
from neva.inference.exchange import at_rank_0, share
from neva.inference.hugging_face import decoder_of
from neva.inference.load import Assistant
from neva.inference.prompts import Request, read_requests
from neva.inference.results import AnsweredBy, result_row
from neva.metrics.metric import Metric, Verdict
from neva.metrics.reference import reference_of
from neva.registry import METRICS
from neva.training.sample_logging import log_samples, picture
from neva.training.step import evaluating

logger = logging.getLogger(__name__)

FOLDER = "samples"
_GREEDY = {
    "greedy": True,
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "repetition_penalty": 1.0,
    "min_tokens_to_generate": 0,
    "end_strings": [],
    "seed": 0,
    "add_BOS": True,
    "compute_logprob": False,
    "all_probs": False,
}
"""A section `inference`: the same answers from the same weights."""


class Samples(Callback):
    """Every `every_n_steps` steps, and after the last: greedy answers, in `samples/step-N.jsonl` and in the loggers.

    Args:
        settings: the section `trainer.samples`, which names a prompt file.
        run_dir: of the run.
    """

    def __init__(self, settings: DictConfig, run_dir: Path) -> None:
        self.settings, self.run_dir = settings, run_dir
        self.metric: Metric | None = None if settings.metric is None else METRICS[settings.metric]
        self.step, self.figures = -1, dict[str, float]()
        self.seconds = 0.0
        """Spent so far."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reads the prompts, and the images that loggers show."""
        module: Any = pl_module
        folder = self.settings.images_base_path or module.cfg.data.image_folder
        prompts = read_requests(Path(self.settings.prompt_file), Path(folder or "."), None)
        self.requests = prompts[: self.settings.num_prompts]
        if self.metric is not None:
            for number, request in enumerate(self.requests, 1):
                _require_reference(self.metric, request, f"{self.settings.prompt_file}, prompt {number}")
        self.pictures = [picture(request) for request in self.requests] if trainer.is_global_zero else []
        self.encoder = build_encoder(module.cfg, module.tokenizer)
        processor = build_image_processor(module.cfg.mm_cfg.vision_encoder)
        self.media = build_media_reader(module.cfg, module.vision, processor)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Answers when it is time."""
        step = trainer.global_step
        if step % self.settings.every_n_steps and step != trainer.max_steps:
            return
        started = time.monotonic()
        answers = self._answers(trainer, pl_module)
        if trainer.is_global_zero:
            self._keep(trainer, step, answers)
        self.step = step
        self.seconds += time.monotonic() - started

    def values(self, step: int) -> dict[str, float]:
        """Returns the figures of this step; nothing when it did not answer."""
        return self.figures if step == self.step else {}

    def _answers(self, trainer: Trainer, module: Any) -> dict[int, Answer | DataError]:
        """Returns the answers on rank 0; every rank takes part."""
        found: dict[int, Answer | DataError] = {}
        numbers = range(len(self.requests))
        settings = OmegaConf.create(
            {
                **_GREEDY,
                "batch_size": len(self.requests),
                "tokens_to_generate": self.settings.tokens_to_generate,
            }
        )
        session = trainer.strategy.session  # type: ignore[attr-defined]
        with (
            module.validated_weights(),
            evaluating(module.chunks),
            module.backend.unsharded(module.models),
        ):
            mine = {number: self.requests[number] for number in share(numbers)}
            assistant = self._assistant(module, trainer.strategy.root_device)
            for said in at_rank_0(session.store, numbers, answer_all(assistant, settings, mine)):
                found |= said
        return found

    def _keep(self, trainer: Trainer, step: int, answers: Mapping[int, Answer | DataError]) -> None:
        """Writes, scores and logs answers."""
        rows = [
            result_row(request, answers[number], AnsweredBy(f"{self.run_dir.name}, step {step}"))
            for number, request in enumerate(self.requests)
        ]
        if self.metric is not None:
            verdicts = _scored(self.metric, rows)
            figures = self.metric.figures(verdicts)
            self.figures = {f"samples_{name}": value for name, value in figures.items()}
            shown = ", ".join(f"{name} {value:.1f} %" for name, value in figures.items())
            logger.info("step %s: %s of %s samples", step, shown, len(rows))
        file = self.run_dir / FOLDER / f"step-{step:06d}.jsonl"
        file.parent.mkdir(exist_ok=True)
        with finished_target(file, overwrite=True) as temporary:  # a resumed run takes the step again
            temporary.write_text("".join(map(json_line, rows)), encoding="utf-8")
        log_samples(trainer.loggers, self.pictures, rows, self.figures, step)

    def _assistant(self, module: Any, device: torch.device) -> Assistant:
        """Returns the model as it is now, ready to answer; its weights are read, not copied, where they need not be."""
        (model,) = module.models
        return Assistant(
            model, decoder_of(model), module.cfg, module.tokenizer, self.encoder, self.media, device
        )


def _require_reference(metric: Metric, request: Request, place: str) -> None:
    """Raises DataError where a prompt could not be scored, before anything is trained."""
    try:
        metric.judge("", reference_of(request.keys))
    except DataError as error:
        raise DataError(f"trainer.samples.metric={metric.name}: {place}: {error}") from error


def _scored(metric: Metric, rows: Sequence[dict[str, Any]]) -> list[Verdict]:
    """Returns the verdicts, and adds to each row what was read and what it is worth."""
    verdicts = [metric.judge(row["text"], reference_of(row)) for row in rows]
    for row, verdict in zip(rows, verdicts, strict=True):
        row |= {"read": verdict.read, "score": verdict.score}
    return verdicts
