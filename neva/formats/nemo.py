"""`.nemo` files: an uncompressed tar of configuration, tokenizer, image processor, weights and a manifest.

What is where is said in `nemo_header`. Weights hold no pickle and no trace of the parallel layout; vocabulary padding
is not stored. They are read where they lie in the tar. The same content gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import omegaconf
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from neva.constants import VOCABULARY
from neva.errors import CheckpointError
from neva.formats.archive import read_range
from neva.formats.atomic_write import finished_target
from neva.formats.json import json_text, parse_object, shown
from neva.formats.nemo_header import (
    CONFIG_FILE,
    IMAGE_PROCESSOR_FILE,
    MANIFEST_FILE,
    TOKENIZER_FOLDER,
    WEIGHTS_FOLDER,
    WEIGHTS_INDEX,
    nemo_members,
    parse_config,
)
from neva.formats.safetensors import TensorFile, TensorFileWriter
from neva.formats.tar_writer import TarWriter, sha256_of

FORMAT = "neva-1"
SHARD_BYTES = 10**9  # small enough that hashing one overlaps with writing the next


class NemoFile:
    """An opened `.nemo` file or extracted folder.

    `config` is the `model` section (None keys allowed, no classes named), `manifest` the manifest, `weights` a lazy
    mapping from native names to tensors.

    Raises:
        CheckpointError: anything that is not such a file, or that should not be trusted.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.members = nemo_members(self.path)
        self.manifest = parse_object(self.read(MANIFEST_FILE), f"{MANIFEST_FILE} of {path}")
        if self.manifest.get("format") != FORMAT:
            raise CheckpointError(
                f"{path}: the manifest says format {self.manifest.get('format')!r}, expected {FORMAT!r}"
            )
        self.config = _safe_config(self.read(CONFIG_FILE), str(path))
        self.weights = NemoWeights(self)

    def read(self, member: str) -> bytes:
        """Returns the bytes of one member."""
        return read_range(self.members[member])

    @property
    def image_processor(self) -> dict[str, Any] | None:
        """The image processor's configuration, or None when the file has none."""
        if IMAGE_PROCESSOR_FILE not in self.members:
            return None
        return parse_object(self.read(IMAGE_PROCESSOR_FILE), f"{IMAGE_PROCESSOR_FILE} of {self.path}")

    @property
    def tokenizer_files(self) -> list[str]:
        """Names of the tokenizer's files, without their folder."""
        return [
            name.removeprefix(TOKENIZER_FOLDER) for name in self.members if name.startswith(TOKENIZER_FOLDER)
        ]

    def tokenizer(self) -> dict[str, bytes]:
        """Returns the tokenizer's files, by name."""
        return {name: self.read(TOKENIZER_FOLDER + name) for name in self.tokenizer_files}

    def extract_tokenizer(self, folder: str | Path) -> Path:
        """Writes the tokenizer's files into `folder`, which is created if needed, and returns it.

        Raises:
            CheckpointError: there are none.
        """
        if not self.tokenizer_files:
            raise CheckpointError(f"{self.path} holds no tokenizer")
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.tokenizer().items():
            (folder / name).write_bytes(content)
        return folder

    def verify(self) -> None:
        """Compares every member with its sha256 in the manifest.

        Raises:
            CheckpointError: the first that differs or is missing.
        """
        listed = self.manifest.get("members")
        if not isinstance(listed, dict):
            raise CheckpointError(f"{self.path}: {MANIFEST_FILE} lists no members; fetch the file again")
        for name, entry in listed.items():
            if name not in self.members:
                raise CheckpointError(f"{self.path}: {name} is in the manifest, but missing")
            file, start, size = self.members[name]
            expected = entry.get("sha256") if isinstance(entry, dict) else None
            if (found := sha256_of(file, start, size)) != expected:
                raise CheckpointError(
                    f"{self.path}: {name} has sha256 {found}, the manifest says {shown(expected)}; it has changed "
                    "since it was written: copy or fetch the file again"
                )
        if unknown := set(self.members) - set(listed) - {MANIFEST_FILE}:
            raise CheckpointError(f"{self.path}: {min(unknown)} is not in the manifest")


def open_nemo(path: str | Path) -> NemoFile:
    """Opens a `.nemo` file or an extracted folder; reads configuration and manifest, no weights."""
    return NemoFile(path)


class NemoWeights(Mapping[str, Tensor]):
    """The tensors of a `.nemo` by native name, each read when it is asked for."""

    def __init__(self, nemo: NemoFile) -> None:
        shards = [
            name for name in nemo.members if name.startswith(WEIGHTS_FOLDER) and name.endswith(".safetensors")
        ]
        self._files = [TensorFile(*nemo.members[name]) for name in sorted(shards)]
        self._file_of = {name: file for file in self._files for name in file}
        if len(self._file_of) != sum(len(file) for file in self._files):
            raise CheckpointError(f"{nemo.path} holds a tensor twice")

    def __getitem__(self, name: str) -> Tensor:
        return self._file_of[name][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)

    def without_values(self) -> dict[str, Tensor]:
        """Returns tensors of the same shapes and dtypes on the meta device; nothing is read."""
        return {name: file.empty(name) for name, file in self._file_of.items()}


def write_nemo(
    path: str | Path,
    config: DictConfig | Mapping[str, Any],
    weights: Iterable[tuple[str, Tensor]],
    tokenizer_dir: str | Path | None,
    image_processor: Mapping[str, Any] | None,
    source: str,
    parts: Mapping[str, str],
    overwrite: bool = False,
    shard_bytes: int = SHARD_BYTES,
    base: Mapping[str, Mapping[str, str]] | None = None,
) -> None:
    """Writes a `.nemo` file, one tensor in memory at a time, under a temporary name until it is complete.

    Args:
        path: the file to write.
        config: the resolved `model` section. Its `vocab_size` is the number of vocabulary rows that are stored.
        weights: (native name, whole tensor) pairs; rows of vocabulary padding are cut off.
        tokenizer_dir: folder whose files are stored (its files only, not folders), or None.
        image_processor: content of `preprocessor_config.json`, or None.
        source: where the weights come from, for the manifest.
        parts: part name (`vision_tower`, `projector`, `language_model`) -> `trained`, `frozen` or `converted`.
        overwrite: replace `path` when it exists.
        shard_bytes: size of the largest file of weights.
        base: part -> path and fingerprint of what adapters were trained beside.

    Raises:
        UserError: `path` exists and `overwrite` is false.
    """
    text = OmegaConf.to_yaml(OmegaConf.create(dict(config)), resolve=True)
    stored = _safe_config(text.encode(), "the configuration")
    with (
        finished_target(path, overwrite) as temporary,
        temporary.open("wb") as stream,
        ThreadPoolExecutor(max_workers=1) as hasher,
    ):
        archive = TarWriter(stream, temporary, hasher)
        archive.add(CONFIG_FILE, text.encode())
        for file in sorted(Path(tokenizer_dir).iterdir()) if tokenizer_dir else []:
            if file.is_file():
                archive.add(TOKENIZER_FOLDER + file.name, file.read_bytes())
        if image_processor is not None:
            archive.add(IMAGE_PROCESSOR_FILE, _json_bytes(image_processor))
        _add_weights(archive, _without_padding(weights, stored.vocab_size), shard_bytes)
        manifest: dict[str, Any] = {
            "format": FORMAT,
            "source": source,
            "parts": dict(parts),
            "versions": _versions(),
        }
        if base:
            manifest["base"] = {part: dict(entry) for part, entry in base.items()}
        archive.add(MANIFEST_FILE, _json_bytes({**manifest, "members": archive.digests()}))
        archive.finish()


def _add_weights(archive: TarWriter, weights: Iterable[tuple[str, Tensor]], shard_bytes: int) -> None:
    pending = iter(weights)
    item = next(pending, None)
    weight_map: dict[str, str] = {}
    total = number = 0
    while item is not None:
        number += 1
        shard = f"model-{number:05d}.safetensors"
        writer = TensorFileWriter(archive.begin())
        while item is not None and writer.has_room(*item, shard_bytes):
            if item[0] in weight_map:
                raise ValueError(f"{item[0]} was given twice")
            writer.add(*item)
            weight_map[item[0]] = shard
            item = next(pending, None)
        archive.end(WEIGHTS_FOLDER + shard, writer.finish())
        total += writer.data_bytes
    archive.add(WEIGHTS_INDEX, _json_bytes({"metadata": {"total_size": total}, "weight_map": weight_map}))


def _without_padding(weights: Iterable[tuple[str, Tensor]], vocab_size: int) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in weights:
        if name in VOCABULARY:
            if len(tensor) < vocab_size:
                raise CheckpointError(
                    f"{name} has {len(tensor)} rows, fewer than model.vocab_size={vocab_size}"
                )
            tensor = tensor[:vocab_size]
        yield name, tensor


def _safe_config(content: bytes, path: str) -> DictConfig:
    """Returns the configuration.

    Raises:
        CheckpointError: `target` or `_target_` names a class outside neva: restoring must not import code by name.
    """
    config = parse_config(content, path)

    def walk(node: Any, where: str) -> None:
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            named = f"{where}.{key}".lstrip(".")
            if key in ("target", "_target_") and not str(value).startswith("neva."):
                raise CheckpointError(
                    f"{path}: {named} names the class {value!r}; only classes of neva are restored"
                )
            if isinstance(value, dict | list):
                walk(value, named)

    walk(OmegaConf.to_container(config, resolve=False), "")
    return config


def _json_bytes(content: Mapping[str, Any]) -> bytes:
    return (json_text(content, sort_keys=True) + "\n").encode()


def _versions() -> dict[str, str]:
    versions = {"omegaconf": omegaconf.__version__}
    for package in ("neva", "torch", "transformers", "megatron-core", "nemo-toolkit"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
