"""Records of a run before it starts: their number, whether each is whole, and whether a few really become samples."""

from __future__ import annotations

import time
import traceback
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from neva.config.data_sources import missing_records
from neva.config.model_config import row_length, vision_config_of
from neva.errors import SampleError, UserError
from neva.findings import Findings

if TYPE_CHECKING:
    from neva.data.dataset import ConversationDataset

CHECKED_RECORDS, CHECK_S = 20_000, 10.0
"""At most so many records, in at most so much time, are tokenised and their image files looked for."""

PROBED_SAMPLES = 16
"""Records, evenly spaced, that are really read, decoded and tokenised."""


def find_samples(model_cfg: DictConfig, found: Findings) -> int | None:
    """Adds the number of samples and, as long as there are no problems, what is broken and the lengths of some.

    Returns:
        The rows of an epoch: samples, or packs; None when that is not known.
    """
    from neva.data.sources.mixture import open_records, source_counts

    if missing_records(model_cfg.data):
        found.add("samples", "unknown")
        return None
    try:
        records = open_records(model_cfg.data)
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
        packs, lengths = packs_of(model_cfg, first_epoch(model_cfg, model_cfg.seed, dataset), dataset)
    except UserError as error:
        found.problems.append(str(error))
        return None
    found.add("packs", describe(packs, lengths, row_length(model_cfg)))
    return len(packs)


def _probe(model_cfg: DictConfig, found: Findings) -> ConversationDataset | None:
    """Checks the records, and prepares a few samples, with the dataset that training uses, which it returns."""
    from neva.data.dataset import build_dataset
    from neva.data.odd_records import ODDITIES
    from neva.data.tokenizer import load_tokenizer

    try:
        dataset = build_dataset(model_cfg, vision_config_of(model_cfg), load_tokenizer(model_cfg.tokenizer))
    except UserError as error:
        found.problems.append(str(error))
        return None
    broken = _Broken()
    try:
        checked = _check(dataset, broken)
        found.add("records", f"{checked:,} of {len(dataset):,} checked, {broken.count:,} of them broken")
        _read_some(dataset, broken, found)
    except UserError as error:
        found.problems.append(str(error))
        return None
    _judge(dataset, broken, checked, found)
    for kind, oddity in ODDITIES.items():
        if count := dataset.odd.count(kind):
            found.notes.append(
                f"in {count:,} of the {checked:,} records checked {oddity.found}: {oddity.reading} "
                "(model.data.odd_records)"
            )
    if shortened := int(dataset.shortened.sum()):
        found.notes.append(
            f"{shortened:,} of the {checked:,} records checked are cut to fit into model.encoder_seq_length"
        )
    return dataset


class _Broken:
    """Records that give no sample, by what is wrong with them."""

    def __init__(self) -> None:
        self.indices: set[int] = set()
        self.kinds: dict[tuple[str, int, str], list[SampleError]] = {}

    @property
    def count(self) -> int:
        return len(self.indices)

    def add(self, index: int, error: SampleError) -> None:
        """Counts a record with those that were refused at the same place of the code, for the same kind of thing."""
        self.indices.add(index)
        origin = traceback.extract_tb((error.__cause__ or error).__traceback__)[-1]
        self.kinds.setdefault((origin.filename, origin.lineno or 0, error.kind), []).append(error)

    def lines(self, dataset: ConversationDataset, passed_over: bool) -> list[str]:
        """Returns the first record of each kind that the data set passes over, or not, with the number of its like."""
        return [
            f"{first} ({len(others):,} more records like it)" if others else str(first)
            for first, *others in self.kinds.values()
            if dataset.passes_over(first) is passed_over
        ]


def _check(dataset: ConversationDataset, broken: _Broken) -> int:
    """Checks records without decoding their images, evenly spaced where they are too many; returns how many."""
    checked, stop = 0, time.monotonic() + CHECK_S
    for index in range(0, len(dataset), -(-len(dataset) // CHECKED_RECORDS)):
        try:
            dataset.check(index)
        except SampleError as error:
            broken.add(index, error)
        checked += 1
        if time.monotonic() > stop:
            break
    return checked


def _read_some(dataset: ConversationDataset, broken: _Broken, found: Findings) -> None:
    """Really reads a few records, evenly spaced, as far as the check did not refuse them."""
    lengths, stride = [], max(1, len(dataset) // PROBED_SAMPLES)
    for index in range(0, len(dataset), stride)[:PROBED_SAMPLES]:
        if index in broken.indices:
            continue
        try:
            lengths.append(len(dataset.read(index).input_ids))
        except SampleError as error:
            broken.add(index, error)
    if lengths:
        line = f"{sum(lengths) / len(lengths):.0f} positions on average, {max(lengths)} at most"
        found.add("lengths", f"{line} ({len(lengths)} samples read)")


def _judge(dataset: ConversationDataset, broken: _Broken, checked: int, found: Findings) -> None:
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
