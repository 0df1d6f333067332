"""What may happen to a file of a model folder, drawn by hypothesis: a byte, a cut, a removal, another JSON value."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

OTHERS: list[Any] = [
    None, True, False, 0, -1, 1, 3, 2**70, 1.5, -0.5, float("nan"), float("inf"), 1e308, "", "x", "1", "silu",
    "\ud83d", [], [1], ["x"], [[]], {}, {"a": 1}, {"content": 5},
]  # fmt: skip
"""Values of every kind that JSON has, and some that it has not."""

GONE = object()
HEADER_LENGTH = 8


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values inside of one; of a list, of the first three."""
    yield path
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value[:3])
        for key, below in items:
            yield from places(below, (*path, key))


def exchanged(value: Any, path: tuple[Any, ...], other: Any) -> Any:
    """A copy of `value` with `other` at `path`; without the item where that is GONE."""
    if not path:
        return None if other is GONE else other
    result = copy.deepcopy(value)
    inner = result
    for key in path[:-1]:
        inner = inner[key]
    if other is GONE:
        del inner[path[-1]]
    else:
        inner[path[-1]] = other
    return result


def other_value(data: st.DataObject, value: Any) -> Any:
    """`value` with one value somewhere inside exchanged or removed."""
    path = data.draw(st.sampled_from(list(places(value))), "path")
    return exchanged(value, path, data.draw(st.sampled_from([*OTHERS, GONE]), "other"))


def other_bytes(data: st.DataObject, content: bytes) -> bytes:
    """`content` with a bit of one byte flipped, or cut."""
    position = data.draw(
        st.integers(0, min(len(content), 3000) - 1) | st.integers(0, len(content) - 1), "position"
    )
    if data.draw(st.booleans(), "is cut"):
        return content[:position]
    flipped = content[position] ^ (1 << data.draw(st.integers(0, 7), "bit"))
    return content[:position] + bytes([flipped]) + content[position + 1 :]


def other_content(data: st.DataObject, name: str, content: bytes) -> bytes:
    """The content of a file with one thing done to it that its kind allows."""
    kind = name.rpartition(".")[2]
    if kind not in ("json", "yaml", "safetensors") or data.draw(st.integers(0, 3), "kind of harm") == 0:
        return other_bytes(data, content)
    if kind == "json":
        return json.dumps(other_value(data, json.loads(content))).encode()
    if kind == "yaml":
        return yaml.safe_dump(other_value(data, yaml.safe_load(content))).encode()
    length = int.from_bytes(content[:HEADER_LENGTH], "little")
    behind = content[HEADER_LENGTH + length :]
    header = json.dumps(
        other_value(data, json.loads(content[HEADER_LENGTH : HEADER_LENGTH + length]))
    ).encode()
    return len(header).to_bytes(HEADER_LENGTH, "little") + header + behind


def harm_folder(data: st.DataObject, folder: Path) -> str:
    """Does one thing to one file of a folder, and returns its name."""
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    name = data.draw(st.sampled_from([file for file in files if file != "parity.json"]), "file")
    path = folder / name
    if data.draw(st.integers(0, 9), "is removed") == 0:
        path.unlink()
    else:
        path.write_bytes(other_content(data, name, path.read_bytes()))
    return name


def harm_nemo(data: st.DataObject, path: Path) -> str:
    """Does one thing to the file, or to one member, whose checksum then says what it holds; returns its name."""
    if data.draw(st.integers(0, 2), "is as it lies") == 0:
        path.write_bytes(other_bytes(data, path.read_bytes()))
        return path.name
    with tarfile.open(path) as archive:
        members = {info.name: archive.extractfile(info).read() for info in archive}  # type: ignore[union-attr]
    name = data.draw(st.sampled_from(sorted(members)), "member")
    if data.draw(st.integers(0, 9), "is removed") == 0:
        del members[name]
    else:
        members[name] = other_content(data, name, members[name])
    if name != "manifest.json":
        manifest = json.loads(members["manifest.json"])
        digests = {file: hashlib.sha256(content).hexdigest() for file, content in members.items()}
        manifest["members"] = {
            file: {"sha256": digest} for file, digest in digests.items() if file != "manifest.json"
        }
        members["manifest.json"] = json.dumps(manifest).encode()
    with tarfile.open(path, "w") as archive:
        for file, content in members.items():
            info = tarfile.TarInfo(file)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return name
