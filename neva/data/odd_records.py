"""Records that LLaVA reads, though not as they are written: what is odd about them, and how they are read then.

Source: haotian-liu/LLaVA, llava/train/train.py (`preprocess_multimodal`, `preprocess_v1`, `LazySupervisedDataset`) and
llava/model/llava_arch.py (`prepare_inputs_labels_for_multimodal`).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from neva.constants import IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER
from neva.data.control_tokens import LITERAL
from neva.data.sources.conversation import FIRST_ANSWER
from neva.data.sources.source import Record
from neva.errors import OddRecordError
from neva.templates.template import Turn, placeholders

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Oddity:
    """One kind: what was found, how it is read, and whether images or placeholders get lost by that."""

    found: str
    reading: str
    is_loss: bool = False


NO_IMAGE, UNUSED_IMAGE, SURPLUS = "no image", "unused image", "surplus <image>"
ANSWERED, NO_PLACE, NO_VIDEO = "image in answer", "system prompt", "no video"

ODDITIES = {
    FIRST_ANSWER: Oddity("an answer stands before the first question", "it is dropped"),
    ANSWERED: Oddity("an image stands in an answer", "it is shown there, its positions carry no loss"),
    NO_PLACE: Oddity("the template has no place for the system prompt", "it is left out"),
    NO_IMAGE: Oddity("there is an <image> and no image", "it is read as text", is_loss=True),
    UNUSED_IMAGE: Oddity(
        "there are more images than <image>", "the last of them are not shown", is_loss=True
    ),
    NO_VIDEO: Oddity("there is a <video> and no video", "it is read as text", is_loss=True),
    SURPLUS: Oddity("there are more <image> than images", "the last of them are left out", is_loss=True),
}
"""Every kind by its name, by which records are counted."""


def read_as_llava(record: Record, has_system_place: bool, has_videos: bool) -> Record:
    """Returns the record as LLaVA reads it; its `odd` names what that changed.

    Placeholders of a record with videos must be right: which of them are whose could only be guessed.

    Args:
        record: as its file has it.
        has_system_place: whether the template takes a system prompt.
        has_videos: whether videos are read, so that `<video>` stands for one.
    """
    odd = list(record.odd)
    images, turns, system = record.images, record.turns, record.system
    if system and not has_system_place:
        odd.append(NO_PLACE)
        system = None
    if has_videos and not record.videos and any(VIDEO_PLACEHOLDER in (turn.text or "") for turn in turns):
        odd.append(NO_VIDEO)
    found = len(images) if record.videos else placeholders(turns)
    if found and not images:
        odd.append(NO_IMAGE)
        turns = [replace(turn, text=(turn.text or "").replace(IMAGE_PLACEHOLDER, LITERAL)) for turn in turns]
    elif found > len(images):
        odd.append(SURPLUS)
        turns = _without_last(turns, len(images))
    elif found < len(images):
        odd.append(UNUSED_IMAGE)
        images = images[:found]
    if images and any(IMAGE_PLACEHOLDER in (turn.text or "") for turn in turns if turn.role == "gpt"):
        odd.append(ANSWERED)
    return replace(record, turns=turns, images=images, system=system, odd=tuple(odd)) if odd else record


def _without_last(turns: Sequence[Turn], kept: int) -> list[Turn]:
    """Returns turns with their first `kept` placeholders alone, the others gone with the new line behind them."""
    result = []
    for turn in turns:
        first, *rest = re.split(f"({IMAGE_PLACEHOLDER}\n?)", turn.text or "")
        for placeholder, text in zip(rest[::2], rest[1::2], strict=True):
            first += placeholder * (kept > 0) + text
            kept -= 1
        result.append(replace(turn, text=first))
    return result


def refuse(record: Record, written: Record) -> None:
    """Raises OddRecordError for a record that is read otherwise than it is written.

    Args:
        record: as LLaVA reads it.
        written: as its file has it.
    """
    found = [ODDITIES[kind].found for kind in record.odd if kind not in (NO_IMAGE, UNUSED_IMAGE, SURPLUS)]
    if len(found) < len(record.odd):
        count = placeholders(written.turns)
        found.append(
            f"found {count} {IMAGE_PLACEHOLDER} placeholders for {len(written.images)} images; "
            "each image needs exactly one"
        )
    readings = "; ".join(ODDITIES[kind].reading for kind in record.odd)
    raise OddRecordError(f"{'; '.join(found)} (model.data.odd_records=llava: {readings})", record.odd[0])


class OddCounts:
    """What is odd about each record of a data set that was read so far: one byte a record, which its workers share."""

    def __init__(self, num_records: int) -> None:
        self._kinds = torch.zeros(
            num_records, dtype=torch.uint8
        ).share_memory_()  # a bit for each of ODDITIES
        self._said: set[str] = set()

    def add(self, index: int, record: Record, place: str) -> list[str]:
        """Counts a record, logs the first of each kind, and returns its kinds that were not counted before."""
        new = [kind for kind in record.odd if not self._kinds[index] & _bit(kind)]
        for kind in new:
            self._kinds[index] |= _bit(kind)
            if kind not in self._said:
                self._said.add(kind)
                found, reading = ODDITIES[kind].found, ODDITIES[kind].reading
                logger.warning(
                    "%s: %s; %s. Others like it are counted (model.data.odd_records)", place, found, reading
                )
        return new

    def clear(self) -> None:
        """Forgets the records; what was said of a kind is not said again."""
        self._kinds.zero_()

    def of_kind(self, kind: str) -> torch.Tensor:
        """Returns which records have this oddity, bool [num_records]."""
        return (self._kinds & _bit(kind)).bool()

    def of_record(self, index: int) -> list[str]:
        """Returns the oddities of a record."""
        return [kind for kind in ODDITIES if self._kinds[index] & _bit(kind)]

    def count(self, kind: str) -> int:
        """Returns how many records have this oddity."""
        return int(self.of_kind(kind).sum())


def _bit(kind: str) -> int:
    return 1 << list(ODDITIES).index(kind)
