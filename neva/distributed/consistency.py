"""Do all ranks run the same configuration, code and data? Hashes are compared before the first group is built."""

from __future__ import annotations

import hashlib
import json
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch.distributed as dist
from omegaconf import DictConfig, OmegaConf

import neva
from neva.config.data_sources import missing_records
from neva.data.sources.mixture import content_of, open_records
from neva.distributed.groups import gathered
from neva.errors import LaunchError
from neva.formats.digest import file_digest
from neva.weights.resolve import WEIGHT_KEYS

LIBRARIES = ("torch", "megatron-core", "nemo_toolkit", "lightning", "transformers", "numpy")
"""Packages whose version decides what is computed."""

FILE_KEYS = (
    *WEIGHT_KEYS,
    "model.tokenizer.type",
    "model.tokenizer.model",
    "neva_model_file",
    "checkpoint_dir",
)
"""Keys that name files or folders, which count by names and sizes."""

_OF_FILES = ("content of ", "files of ")
"""How the names of facts begin that files are read for."""

_RANK_0_SPEAKS_S = 3.0


class RankMismatch(LaunchError):
    """Ranks differ. Rank 0's says which and in what, the others' are empty: one sentence for the whole run."""


def fingerprint(cfg: DictConfig, reads_files: bool = True) -> dict[str, str | None]:
    """Returns what has to be the same on every rank: every key, the code's versions and the identity of the files.

    A data file counts by its content, weights and tokenizers by the names and sizes of their files; None where
    `reads_files` is not set: one rank of a node reads for all of them.
    """

    def read(fact: Callable[[], str]) -> str | None:
        return fact() if reads_files else None

    found: dict[str, str | None]
    found = {f"key {name}": value for name, value in _flat(OmegaConf.to_container(cfg, resolve=True), "")}
    found["neva's code"] = f"{neva.__version__} {_digest_of_code(Path(neva.__file__).parent)}"
    found["Python"] = ".".join(map(str, sys.version_info[:3]))
    found |= {name: _version(name) for name in LIBRARIES}
    if "model" in cfg and not missing_records(cfg.model.data):
        data = cfg.model.data
        found[f"content of {data.data_path}"] = read(lambda: content_of(open_records(data)))
    for key in ("model.data.validation", "prompt_file"):
        file = OmegaConf.select(cfg, key)
        if file is not None and Path(file).is_file():
            found[f"content of {file}"] = read(partial(file_digest, Path(file)))
    for key in FILE_KEYS:
        source = OmegaConf.select(cfg, key)
        if source is not None and Path(source).exists():
            found[f"files of {source}"] = read(partial(_listing, Path(source)))
    return found


def compare_ranks(mine: Mapping[str, str | None]) -> None:
    """Compares the fingerprint of all ranks; called by every rank. Rank 0's has all facts.

    Raises:
        RankMismatch: they differ; on rank 0 with the rank, the host and both values.
    """
    digests = gathered(_digests(mine))
    if all(theirs == digests[0][: len(theirs)] for theirs in digests):
        return
    fingerprints, hosts = gathered(dict(mine)), gathered(socket.gethostname())
    if dist.get_rank() == 0:
        raise RankMismatch(disagreement(fingerprints, hosts))
    # a launcher that sees one process end may kill the others: rank 0 speaks first
    time.sleep(_RANK_0_SPEAKS_S)
    raise RankMismatch("")


def disagreement(fingerprints: Sequence[Mapping[str, str | None]], hosts: Sequence[str]) -> str:
    """Returns the sentence on the first rank that differs from rank 0, and how many more do."""
    first = fingerprints[0]
    differing = [rank for rank, theirs in enumerate(fingerprints) if _differences(first, theirs)]
    rank = differing[0]
    names = _differences(first, fingerprints[rank])
    name = names[0]
    more = f", and {len(names) - 1} more" if len(names) > 1 else ""
    others = f" (so do {len(differing) - 1} other ranks)" if len(differing) > 1 else ""
    return (
        f"rank {rank} on {hosts[rank]} differs from rank 0 on {hosts[0]}{others}: {name} is "
        f"{fingerprints[rank].get(name, 'absent')} there and {first.get(name, 'absent')} on rank 0{more}; start every "
        "rank with the same command, code and files"
    )


def _digests(mine: Mapping[str, str | None]) -> list[str]:
    """Returns a digest of the facts of no file, and one of those of files unless they were not read."""
    parts: tuple[dict[str, str | None], dict[str, str | None]] = ({}, {})
    for name, value in mine.items():
        parts[name.startswith(_OF_FILES)][name] = value
    read = [part for part in parts if None not in part.values()]
    return [hashlib.sha256(json.dumps(part, sort_keys=True).encode()).hexdigest() for part in read]


def _differences(first: Mapping[str, str | None], theirs: Mapping[str, str | None]) -> list[str]:
    """Returns the names of the facts in which a rank that looked differs from rank 0."""
    names = sorted(first.keys() | theirs.keys())
    return [name for name in names if theirs.get(name, "absent") not in (None, first.get(name, "absent"))]


def _flat(node: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, dict):
        for name, value in node.items():
            yield from _flat(value, f"{path}.{name}" if path else str(name))
    else:
        yield path, json.dumps(node)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _digest_of_code(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def _listing(source: Path) -> str:
    files = [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.is_file())
    sizes = [(str(path.relative_to(source)), path.stat().st_size) for path in files]
    total = sum(size for _, size in sizes)
    return (
        f"{total} bytes in {len(sizes)} files, {hashlib.sha256(json.dumps(sizes).encode()).hexdigest()[:12]}"
    )
