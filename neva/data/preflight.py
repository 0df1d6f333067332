"""Records of a run before it starts: their number, whether each is whole, and whether a few really become samples."""

from __future__ import annotations

from typing import TYPE_CHECKING

from omegaconf import DictConfig

from neva.config.data_sources import missing_records
from neva.config.samples import row_length
from neva.config.tower import vision_config_of
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
        The rows of an epoch: samples, or packs; None when that is not known.
    """
    from neva.data.held_out import training_records
    from neva.data.sources.mixture import source_counts

    if missing_records(model_cfg.data):
        found.add("samples", "unknown")
        return None
    try:
        records = training_records(model_cfg.data)
        counts = source_counts(records)
    except UserError as error:
        found.problems.append(str(error))
        return None
    num_samples = len(records)
    found.add("samples", f"{num_samples:,}")
    if counts:
        found.add("sources", counts)
    dataset = None if found.problems else _probe(model_cfg, found)
    if not model_cfg.data.packed_sequence:
        return num_samples
    return None if dataset is None or found.problems else _find_packs(model_cfg, dataset, found)


def _find_packs(model_cfg: DictConfig, dataset: ConversationDataset, found: Findings) -> int | None:
    """Adds and returns the packs of an epoch; None where their number is not known before all records are encoded."""
    from neva.data.loader import first_epoch
    from neva.data.packs import are_lengths_known, describe, packs_of

    if len(dataset) > CHECKED_RECORDS and not are_lengths_known(model_cfg, dataset):
        found.add("packs", "known when all lengths are measured: by `neva data pack`, or when the run begins")
        return None
    try:
        packs, lengths, _ = packs_of(model_cfg, first_epoch(model_cfg, model_cfg.seed, dataset), dataset)
    except UserError as error:
        found.problems.append(str(error))
        return None
    found.add("packs", describe(packs, lengths, row_length(model_cfg)))
    return len(packs)


def _probe(model_cfg: DictConfig, found: Findings) -> ConversationDataset | None:
    """Checks the records, and prepares a few samples, with the dataset that training uses, which it returns."""
    from neva.data.build import build_dataset
    from neva.data.tokenizer import load_tokenizer

    vision = vision_config_of(model_cfg)
    try:
        tokenizer = load_tokenizer(model_cfg.tokenizer)
        dataset = build_dataset(model_cfg, vision, tokenizer)
        _look_at(dataset, "records", found)
        _find_held_out(model_cfg, vision, tokenizer, found)
    except UserError as error:
        found.problems.append(str(error))
        return None
    return dataset


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
    from neva.data.odd_records import ODDITIES
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
    for kind, count in seen.odd.items():
        found.notes.append(
            f"in {count:,} of the {seen.checked:,} records checked {ODDITIES[kind].found}: {ODDITIES[kind].reading} "
            "(model.data.odd_records)"
        )
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
