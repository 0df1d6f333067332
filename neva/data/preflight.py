"""Records of a run before it starts: their number, whether each is whole, and whether a few really become samples."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from neva.config.model_config import vision_config_of
from neva.errors import UserError
from neva.findings import Findings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from neva.data.dataset import ConversationDataset
    from neva.data.quick_check import BrokenRecords
    from neva.families.configs import VisionConfig

CHECKED_RECORDS, CHECK_S = 20_000, 10.0
"""At most so many records, in at most so much time, are tokenised and their image files looked for."""

PROBED_SAMPLES = 16
"""Records, evenly spaced, that are really read, decoded and tokenised."""


def find_samples(model_cfg: DictConfig, found: Findings) -> int | None:
    """Adds the number of samples and, as long as there are no problems, what is broken and the lengths of some.

    Returns:
        The number, None when the data cannot be read.
    """
    from neva.data.held_out import training_records

    data = model_cfg.data
    if not Path(data.data_path).exists():
        found.add("samples", "unknown")
        return None
    try:
        num_samples = len(training_records(data))
    except UserError as error:
        found.problems.append(str(error))
        return None
    found.add("samples", f"{num_samples:,}")
    if not found.problems:
        _probe(model_cfg, found)
    return num_samples


def _probe(model_cfg: DictConfig, found: Findings) -> None:
    """Checks the records, and prepares a few samples, with the dataset that training uses."""
    from neva.data.dataset import build_dataset
    from neva.data.tokenizer import load_tokenizer

    vision = vision_config_of(model_cfg)
    try:
        tokenizer = load_tokenizer(model_cfg.tokenizer)
        _look_at(build_dataset(model_cfg, vision, tokenizer), "records", found)
        _find_held_out(model_cfg, vision, tokenizer, found)
    except UserError as error:
        found.problems.append(str(error))


def _find_held_out(
    model_cfg: DictConfig, vision: VisionConfig, tokenizer: PreTrainedTokenizerFast, found: Findings
) -> None:
    """Adds what is held out to validate on, if anything is."""
    from neva.data.validation import build_validation_dataset, validation_steps

    held_out = build_validation_dataset(model_cfg, vision, tokenizer)
    if held_out is None:
        return
    batch = model_cfg.global_batch_size
    steps = len(validation_steps(len(held_out), batch, None, model_cfg.data.validation_drop_last))
    found.add("validation", f"{len(held_out):,} samples held out, {steps:,} batches of {batch:,}")
    _look_at(held_out, "held-out records", found)


def _look_at(dataset: ConversationDataset, what: str, found: Findings) -> None:
    """Adds how many of the records are broken, how long some are, and what follows for the run."""
    from neva.data.quick_check import check_quickly

    seen = check_quickly(dataset, CHECKED_RECORDS, CHECK_S, PROBED_SAMPLES)
    broken = f"{seen.broken.count:,} of them broken"
    found.add(what, f"{seen.checked:,} of {len(dataset):,} checked, {broken}")
    if lengths := seen.lengths:
        line = f"{sum(lengths) / len(lengths):.0f} positions on average, {max(lengths)} at most"
        found.add(
            "lengths" if what == "records" else "their lengths", f"{line} ({len(lengths)} samples read)"
        )
    _judge(dataset, seen.broken, seen.checked, found)
    if seen.shortened:
        found.notes.append(
            f"{seen.shortened:,} of the {seen.checked:,} records checked are cut to fit into model.encoder_seq_length"
        )


def _judge(dataset: ConversationDataset, broken: BrokenRecords, checked: int, found: Findings) -> None:
    """Adds what is broken: problems, or notes where training passes over them."""
    if not broken.count:
        return
    found.problems += broken.lines(dataset, passed_over=False)
    skipped = broken.lines(dataset, passed_over=True)
    found.notes += [f"skipped: {line}" for line in skipped]
    if not skipped:
        return
    counted = f"{broken.count:,} of the {checked:,} records checked are broken"
    if broken.count == len(dataset):
        found.problems.append(f"{counted}: none gives a sample")
    elif dataset.is_too_many(broken.count):
        found.problems.append(
            f"{counted}, more than model.data.max_skipped={dataset.max_skipped} of {len(dataset):,} allows: mend them, "
            "or raise model.data.max_skipped"
        )
    elif dataset.on_error == "skip":
        found.notes.append(f"{counted}; model.data.on_error=skip passes over them")
