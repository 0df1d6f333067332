"""Near-duplicates among records: MinHash over the words of their turns, as the datasketch library does it.

Source: Broder, On the resemblance and containment of documents (1997); beni's `fuzzy_filter` has the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from neva.data.sources.source import Record, Records
from neva.errors import ConfigError, SampleError


@dataclass(frozen=True)
class Duplicate:
    """A record that is nearly an earlier one."""

    index: int
    record_id: str
    place: str
    of_index: int
    of_id: str
    similarity: float
    """Estimated share of the common shingles."""


@dataclass(frozen=True)
class Similarity:
    """When two records count as one."""

    threshold: float
    """Share of common shingles, from which on they do."""
    permutations: int
    """Of MinHash; more are more exact."""
    shingle: int
    """Words, or characters where a text has no spaces, that are compared together."""
    same_images: bool
    """Whether their images must have the same names too."""


def find_duplicates(records: Records, settings: Similarity) -> Iterator[Duplicate | None]:
    """Yields for each record the earlier one that it nearly is, None where there is none; malformed ones are none.

    A record that is left out is not compared with later ones: a chain of changes keeps its first.

    Raises:
        ConfigError: datasketch is not installed.
    """
    try:
        from datasketch import MinHashLSH
    except ModuleNotFoundError as error:
        raise ConfigError("neva data dedup needs datasketch: pip install 'neva[dedup]'") from error
    # candidates too many rather than too few: the similarity of each is looked at below
    near = MinHashLSH(threshold=settings.threshold, num_perm=settings.permutations, weights=(0.1, 0.9))
    hashes: dict[int, Any] = {}
    for index in range(len(records)):
        try:
            record = records[index]
        except SampleError:
            yield None
            continue
        own = _minhash(record, settings)
        found = max(((own.jaccard(hashes[other]), -other) for other in near.query(own)), default=(0.0, 0))
        if found[0] < settings.threshold:
            near.insert(index, own)
            hashes[index] = own
            yield None
            continue
        other = records[-found[1]]
        yield Duplicate(index, record.id, record.place, -found[1], other.id, round(float(found[0]), 4))


def _minhash(record: Record, settings: Similarity) -> Any:
    from datasketch import MinHash

    found = MinHash(num_perm=settings.permutations)
    prefix = "\n".join(map(str, record.images)) if settings.same_images else ""
    found.update_batch([f"{prefix}\n{shingle}".encode() for shingle in shingles(record, settings.shingle)])
    return found


def shingles(record: Record, size: int) -> set[str]:
    """Returns all runs of `size` words of the turns; of characters, where words are longer than 20 on average."""
    text = " ".join((turn.text or "") for turn in record.turns).lower()
    words: list[str] | str = text.split()
    if sum(map(len, words)) > 20 * len(words):
        words = text
    joint = " " if isinstance(words, list) else ""
    return {joint.join(words[first : first + size]) for first in range(max(1, len(words) - size + 1))}
