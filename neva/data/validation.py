"""The held-out set in steps of a global batch, the same samples in every layout."""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import DictConfig
from transformers import PreTrainedTokenizerFast

from neva.data.batch import Batch
from neva.data.build import build_dataset
from neva.data.collate import collate
from neva.data.dataset import ConversationDataset, Sample
from neva.data.held_out import validation_records
from neva.data.loader import RankBatchDataset, RankBatchLoader, build_loader
from neva.errors import ConfigError, UserError
from neva.families.configs import VisionConfig

NO_SAMPLE = -1
"""Index of a place in a global batch that no sample is left for."""


class ValidationBatchDataset(RankBatchDataset):
    """Maps one rank's shard of a global batch to its micro batches; places without a sample get one without labels.

    So every rank has equally many micro batches of the size that training has, which a pipeline needs, and the sum
    over the labels is that of the samples alone.
    """

    def __getitem__(self, indices: list[int]) -> list[Batch] | UserError:
        try:
            rows = [[self._sample(index)] for index in indices]
        except UserError as error:
            return error
        return collate(rows, self.micro_batch_size, self.pad_id, self.pad_to_multiple_of, self.same_length)

    def _sample(self, index: int) -> Sample:
        """Returns a sample, one without labels in place of a record that training would pass over."""
        if index == NO_SAMPLE:
            return self.samples.blank(self.pad_id)
        return self.samples.read_or_skip(index) or self.samples.blank(self.pad_id)


def validation_steps(
    num_samples: int, global_batch_size: int, limit: float | None, drop_last: bool
) -> list[list[int]]:
    """Returns the dataset indices of each global batch, in the order of the file; `NO_SAMPLE` fills the last one.

    Args:
        num_samples: of the held-out set.
        global_batch_size: places in a step.
        limit: an integer is a number of steps, a float a share of them; None: all.
        drop_last: leave out the samples that do not fill a step.

    Raises:
        ConfigError: none is left.
    """
    indices = list(range(num_samples))
    steps = [indices[first : first + global_batch_size] for first in range(0, num_samples, global_batch_size)]
    missing = global_batch_size - len(steps[-1])
    if missing and drop_last:
        steps.pop()
    elif missing:
        steps[-1] += [NO_SAMPLE] * missing
    if not steps:
        raise ConfigError(
            f"model.data.validation_drop_last=true leaves none of {num_samples} records to validate on, which do not "
            f"fill a global batch of {global_batch_size}: set it to false, or hold out more"
        )
    if limit is None:
        return steps
    return steps[: limit if isinstance(limit, int) else max(1, int(len(steps) * limit))]


def build_validation_dataset(
    model_cfg: DictConfig, vision: VisionConfig, tokenizer: PreTrainedTokenizerFast
) -> ConversationDataset | None:
    """Returns the held-out set of a resolved `model` section; None: it names none.

    Raises:
        DataError: a file or folder that it names is missing or cannot be read.
    """
    data = model_cfg.data
    records = validation_records(data)
    if records is None:
        return None
    folder = data.image_folder if data.validation_image_folder is None else data.validation_image_folder
    return build_dataset(model_cfg, vision, tokenizer, records, folder)


def validation_loader(
    model_cfg: DictConfig,
    samples: ConversationDataset,
    steps: Sequence[Sequence[int]],
    pad_id: int,
    rank: int,
    size: int,
) -> RankBatchLoader:
    """Builds the loader of data-parallel rank `rank` of `size`: an item a step of `validation_steps`.

    Its workers live as long as one pass over it.
    """
    batches = ValidationBatchDataset(
        samples,
        micro_batch_size=model_cfg.micro_batch_size,
        pad_id=pad_id,
        pad_to_multiple_of=model_cfg.data.pad_to_multiple_of,
        same_length=model_cfg.pipeline_model_parallel_size > 1,
    )
    shards = [list(step[rank::size]) for step in steps]
    return build_loader(batches, shards, min(model_cfg.data.num_workers, len(steps)), persistent=False)
