"""How long samples are and which have images, from their records alone: nothing is tokenised or decoded."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from neva.data.index import BROKEN, Indexed
from neva.data.sources.source import Records
from neva.errors import SampleError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class SampleLengths:
    """Words and images of N samples, in the order of the data set; 6 bytes a sample."""

    words: npt.NDArray[np.int32]
    """[N], parts between white space in all turns, `<image>` among them: LLaVA's measure of length."""
    images: npt.NDArray[np.uint16]
    """[N]"""
    image_tokens: int
    """Positions that one image takes."""

    @property
    def positions(self) -> npt.NDArray[np.int64]:
        """About how many positions each sample takes, [N]: its words and those of its images."""
        return self.words + self.images.astype(np.int64) * self.image_tokens


def measure(records: Records, image_tokens: int, video_images: int = 1) -> SampleLengths:
    """Returns the lengths from the index of the records; where they have none, all are read once.

    One that is malformed counts as the next whole one, which `on_error=skip` takes for it.

    Args:
        records: of the data set.
        image_tokens: positions that one image takes.
        video_images: how many images a video counts as.
    """
    if isinstance(records, Indexed):
        found = records.record_index()
        images = found.images
        if found.videos.any():
            most = np.iinfo(np.uint16).max
            images = np.minimum(images + video_images * found.videos.astype(np.int64), most).astype(np.uint16)
        return _of_whole(found.words, images, found.kinds != BROKEN, image_tokens)
    start = time.monotonic()
    words = np.zeros(len(records), dtype=np.int32)
    images = np.zeros(len(records), dtype=np.uint16)
    is_whole = np.zeros(len(records), dtype=bool)
    for index in range(len(records)):
        try:
            record = records[index]
        except SampleError:
            continue
        words[index] = sum(len((turn.text or "").split()) for turn in record.turns)
        count = len(record.images) + video_images * len(record.videos)
        images[index] = min(count, np.iinfo(np.uint16).max)
        is_whole[index] = True
    logger.info("lengths of %s samples counted in %.1f s", f"{len(records):,}", time.monotonic() - start)
    return _of_whole(words, images, is_whole, image_tokens)


def _of_whole(
    words: npt.NDArray[np.int32],
    images: npt.NDArray[np.uint16],
    is_whole: npt.NDArray[np.bool_],
    image_tokens: int,
) -> SampleLengths:
    """Returns the lengths, those of the next whole record for one that is not."""
    if is_whole.all():
        return SampleLengths(words, images, image_tokens)
    taken = _next_whole(is_whole)
    return SampleLengths(words[taken], images[taken], image_tokens)


def _next_whole(is_whole: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Returns for each index the first at or behind it that is whole, from the beginning again behind the last."""
    whole = np.flatnonzero(is_whole)
    if not len(whole):
        return np.arange(len(is_whole))
    return whole[np.searchsorted(whole, np.arange(len(is_whole))) % len(whole)]
