"""What `energon prepare` writes beside shards (megatron-energon 7), so that its loaders read them at once."""

from __future__ import annotations

import json
import sqlite3
import struct
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from neva.data.sources.webdataset import META

VERSION = "7.4.1"
"""Of energon, whose files these are."""
SCHEMA = """
CREATE TABLE samples (tar_file_id INTEGER NOT NULL, sample_key TEXT NOT NULL UNIQUE, sample_index INTEGER NOT NULL,
    byte_offset INTEGER, byte_size INTEGER);
CREATE TABLE sample_parts (tar_file_id INTEGER, sample_index INTEGER, part_name TEXT, content_byte_offset INTEGER,
    content_byte_size INTEGER);
CREATE INDEX idx_samples_by_tar_and_idx ON samples(tar_file_id, sample_index);
CREATE INDEX idx_sample_parts_seq ON sample_parts(tar_file_id, sample_index, content_byte_offset);
CREATE INDEX idx_sample_parts_full ON sample_parts(tar_file_id, sample_index, part_name, content_byte_offset,
    content_byte_size);
"""
CRUDE = "__module__: megatron.energon\n__class__: CrudeWebdataset\n"
VQA = """\
sample_type:
  __module__: megatron.energon
  __class__: VQASample
field_map:
  image: {ending}
  context: json[0][value]
  answers: json[1][value]
"""


@dataclass(frozen=True)
class ShardMeta:
    """What lies where in a shard."""

    name: str
    members: Sequence[tuple[str, str, int, int, int]]
    """Key, part, offset of the header, offset and size of the content, in bytes."""
    size: int


@dataclass
class Meta:
    """The metadata of a folder of shards."""

    shards: list[ShardMeta] = field(default_factory=list)
    endings: dict[str, None] = field(default_factory=dict)

    def add(self, shard: ShardMeta) -> None:
        """Adds the next shard."""
        self.shards.append(shard)
        self.endings |= dict.fromkeys(part for _, part, *_ in shard.members if part != "json")

    def write(self, folder: Path, is_vqa: bool, split: tuple[float, float, float]) -> None:
        """Writes `.nv-meta` and an index beside each shard.

        Args:
            folder: of the shards.
            is_vqa: whether samples are question and answer, else crude.
            split: shares of train, val and test.
        """
        meta = folder / META
        meta.mkdir()
        samples = [_samples(shard) for shard in self.shards]
        counts = {shard.name: len(rows) for shard, rows in zip(self.shards, samples, strict=True)}
        info = {"energon_version": VERSION, "shard_counts": counts}
        (meta / ".info.json").write_text(json.dumps(info, indent=2))
        (meta / "dataset.yaml").write_text(VQA.format(ending=",".join(self.endings)) if is_vqa else CRUDE)
        (meta / "split.yaml").write_text(_split_text([shard.name for shard in self.shards], split))
        (meta / "index.uuid").write_text(str(uuid.uuid4()))
        for shard, rows in zip(self.shards, samples, strict=True):
            offsets = [first for _, first, _ in rows] + [rows[-1][1] + rows[-1][2]]
            (folder / f"{shard.name}.idx").write_bytes(struct.pack(f"<{len(offsets)}Q", *offsets))
        self._write_index(meta / "index.sqlite", samples)

    def _write_index(self, path: Path, samples: Sequence[Sequence[tuple[str, int, int]]]) -> None:
        database = sqlite3.connect(path)
        try:
            database.executescript(SCHEMA)
            for number, (shard, rows) in enumerate(zip(self.shards, samples, strict=True)):
                place = {key: index for index, (key, *_) in enumerate(rows)}
                database.executemany(
                    "INSERT INTO samples VALUES (?, ?, ?, ?, ?)",
                    ((number, key, place[key], first, size) for key, first, size in rows),
                )
                database.executemany(
                    "INSERT INTO sample_parts VALUES (?, ?, ?, ?, ?)",
                    ((number, place[key], part, start, size) for key, part, _, start, size in shard.members),
                )
            database.commit()
        finally:
            database.close()


def _samples(shard: ShardMeta) -> list[tuple[str, int, int]]:
    """Returns key, offset and size in bytes, padding included, of each sample of a shard."""
    firsts: dict[str, int] = {}
    end = 0
    for key, _, header, start, size in shard.members:
        firsts.setdefault(key, header)
        end = start + -(-size // 512) * 512
    edges = [*firsts.values(), end]
    return [
        (key, first, after - first) for (key, first), after in zip(firsts.items(), edges[1:], strict=True)
    ]


def _split_text(names: Sequence[str], split: tuple[float, float, float]) -> str:
    """Returns `split.yaml`: whole shards, in order; at least one of them trains."""
    total, count = sum(split), len(names)
    test = int(count * split[2] / total)
    val = (
        min(int(count * (split[1] + split[2]) / total + 0.999) if split[1] or split[2] else 0, count - 1)
        - test
    )
    parts = {"train": names[: count - test - val], "val": names[count - test - val : count - test]}
    parts["test"] = names[count - test :]
    lines = ["split_parts:"]
    for part, listed in parts.items():
        lines += [f"  {part}:", *(f"  - {name}" for name in listed)] if listed else [f"  {part}: []"]
    return "\n".join([*lines, "exclude: []", ""])
