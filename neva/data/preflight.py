"""Records of a run before it starts: their number, and whether a few of them really become samples."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from neva.config.model_config import vision_config_of
from neva.errors import SampleError, UserError
from neva.findings import Findings

PROBED_SAMPLES = 16
"""Records, evenly spaced, that are really read, decoded and tokenised."""


def find_samples(model_cfg: DictConfig, found: Findings) -> int | None:
    """Adds the number of samples and, as long as there are no problems, the lengths of some.

    Returns:
        The number, None when the data cannot be read.
    """
    from neva.data.sources.source import open_source

    data = model_cfg.data
    if not Path(data.data_path).exists():
        found.add("samples", "unknown")
        return None
    try:
        num_samples = len(open_source(data.data_path, list(data.datasets_exclude)))
    except UserError as error:
        found.problems.append(str(error))
        return None
    found.add("samples", f"{num_samples:,}")
    if not found.problems:
        _probe(model_cfg, found)
    return num_samples


def _probe(model_cfg: DictConfig, found: Findings) -> None:
    """Prepares a few samples with the dataset that training uses."""
    from neva.data.dataset import build_dataset
    from neva.data.tokenizer import load_tokenizer

    try:
        dataset = build_dataset(model_cfg, vision_config_of(model_cfg), load_tokenizer(model_cfg.tokenizer))
    except UserError as error:
        found.problems.append(str(error))
        return
    lengths, stride = [], max(1, len(dataset) // PROBED_SAMPLES)
    for index in range(0, len(dataset), stride)[:PROBED_SAMPLES]:
        try:
            lengths.append(len(dataset[index].input_ids))
        except SampleError as error:
            found.problems.append(str(error))
    if lengths:
        line = f"{sum(lengths) / len(lengths):.0f} positions on average, {max(lengths)} at most"
        found.add("lengths", f"{line} ({len(lengths)} samples read)")
    if dataset.skipped_count:
        found.notes.append(f"{dataset.skipped_count} records around the samples read were skipped as broken")
