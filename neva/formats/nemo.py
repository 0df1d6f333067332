"""`.nemo` files: an uncompressed tar of configuration, tokenizer, image processor, weights and a manifest.

    model_config.yaml                      the resolved `model` section
    tokenizer/…                            files of a Hugging Face tokenizer
    image_processor/preprocessor_config.json
    model_weights/model-00001.safetensors  whole (unsharded) tensors under native names, with their index
    manifest.json                          sha256 of each member, versions, source, trained and frozen parts

Weights hold no pickle and no trace of the parallel layout; vocabulary padding is not stored. They are read
where they lie in the tar. The same content gives the same bytes. An extracted folder reads like the file.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, BinaryIO

import omegaconf
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from neva.formats.archive import members_of, read_range
from neva.formats.atomic_write import finished_target
from neva.formats.nemo_header import CONFIG_FILE
from neva.formats.safetensors import TensorFile, TensorFileWriter

CONFIG, MANIFEST = CONFIG_FILE, "manifest.json"
TOKENIZER, IMAGE_PROCESSOR = "tokenizer", "image_processor/preprocessor_config.json"
WEIGHTS, INDEX = "model_weights", "model_weights/model.safetensors.index.json"
FORMAT = "neva-1"
SHARD_BYTES = 10**9  # small enough that hashing one overlaps with writing the next
VOCABULARY = ("language_model.embedding.word_embeddings.weight", "language_model.output_layer.weight")


class NemoFile:
    """An opened `.nemo` file or extracted folder.

    `config` is the `model` section (None keys allowed, no classes named), `manifest` the manifest, `weights`
    a lazy mapping from native names to tensors. Raises ValueError for anything that is not such a file or
    that should not be trusted.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.exists():
            raise ValueError(
                f"{path} does not exist; expected a .nemo file or the folder of an extracted one"
            )
        self.members = members_of(self.path)
        for required in (CONFIG, MANIFEST):
            if required not in self.members:
                raise ValueError(
                    f"{path} has no {required}; it is incomplete or was not written by neva (a file of NeMo 1 is "
                    "read by `neva convert OLD.nemo NEW.nemo`)"
                )
        self.manifest: dict[str, Any] = json.loads(self.read(MANIFEST))
        if self.manifest.get("format") != FORMAT:
            raise ValueError(
                f"{path}: the manifest says format {self.manifest.get('format')!r}, expected {FORMAT!r}"
            )
        self.config = _safe_config(self.read(CONFIG), str(path))
        self.weights: Mapping[str, Tensor] = _Weights(self)

    def read(self, member: str) -> bytes:
        """The bytes of one member."""
        return read_range(self.members[member])

    @property
    def image_processor(self) -> dict[str, Any] | None:
        """The image processor's configuration, or None when the file has none."""
        return json.loads(self.read(IMAGE_PROCESSOR)) if IMAGE_PROCESSOR in self.members else None

    @property
    def tokenizer_files(self) -> list[str]:
        """Names of the tokenizer's files, without their folder."""
        return [
            name.removeprefix(f"{TOKENIZER}/") for name in self.members if name.startswith(f"{TOKENIZER}/")
        ]

    def extract_tokenizer(self, folder: str | Path) -> Path:
        """Writes the tokenizer's files into `folder` (created if needed) and returns it. ValueError when
        there are none.
        """
        if not self.tokenizer_files:
            raise ValueError(f"{self.path} holds no tokenizer")
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name in self.tokenizer_files:
            (folder / name).write_bytes(self.read(f"{TOKENIZER}/{name}"))
        return folder

    def verify(self) -> None:
        """Compares every member with its sha256 in the manifest; ValueError naming the first that differs or
        is missing.
        """
        for name, entry in self.manifest["members"].items():
            if name not in self.members:
                raise ValueError(f"{self.path}: {name} is in the manifest, but missing")
            file, start, size = self.members[name]
            found = _sha256(file, start, size)
            if found != entry["sha256"]:
                raise ValueError(
                    f"{self.path}: {name} has sha256 {found}, the manifest says {entry['sha256']}"
                )
        if unknown := set(self.members) - set(self.manifest["members"]) - {MANIFEST}:
            raise ValueError(f"{self.path}: {min(unknown)} is not in the manifest")


def open_nemo(path: str | Path) -> NemoFile:
    """Opens a `.nemo` file or an extracted folder; reads configuration and manifest, no weights."""
    return NemoFile(path)


class _Weights(Mapping[str, Tensor]):
    def __init__(self, nemo: NemoFile) -> None:
        shards = [
            name for name in nemo.members if name.startswith(f"{WEIGHTS}/") and name.endswith(".safetensors")
        ]
        self._files = [TensorFile(*nemo.members[name]) for name in sorted(shards)]
        self._file_of = {name: file for file in self._files for name in file}
        if len(self._file_of) != sum(len(file) for file in self._files):
            raise ValueError(f"{nemo.path} holds a tensor twice")

    def __getitem__(self, name: str) -> Tensor:
        return self._file_of[name][name]

    def empty(self, name: str) -> Tensor:
        """The tensor on the meta device."""
        return self._file_of[name].empty(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)


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
) -> None:
    """Writes a `.nemo` file, one tensor in memory at a time, under a temporary name until it is complete.

    Args:
        path: the file to write; ValueError when it exists and `overwrite` is false.
        config: the resolved `model` section. Its `vocab_size` is the number of vocabulary rows that are
        stored.
        weights: (native name, whole tensor) pairs; rows of vocabulary padding are cut off.
        tokenizer_dir: folder whose files are stored (its files only, not folders), or None.
        image_processor: content of `preprocessor_config.json`, or None.
        source: where the weights come from, for the manifest.
        parts: part name (`vision_tower`, `projector`, `language_model`) -> `trained`, `frozen` or
        `converted`.
    """
    text = OmegaConf.to_yaml(OmegaConf.create(dict(config)), resolve=True)
    stored = _safe_config(text.encode(), "the configuration")
    with (
        finished_target(path, overwrite) as temporary,
        temporary.open("wb") as stream,
        ThreadPoolExecutor(max_workers=1) as hasher,
    ):
        archive = _TarWriter(stream, temporary, hasher)
        archive.add(CONFIG, text.encode())
        for file in sorted(Path(tokenizer_dir).iterdir()) if tokenizer_dir else []:
            if file.is_file():
                archive.add(f"{TOKENIZER}/{file.name}", file.read_bytes())
        if image_processor is not None:
            archive.add(IMAGE_PROCESSOR, _json_bytes(image_processor))
        _add_weights(archive, _without_padding(weights, stored.vocab_size), shard_bytes)
        manifest = {"format": FORMAT, "source": source, "parts": dict(parts), "versions": _versions()}
        archive.add(MANIFEST, _json_bytes({**manifest, "members": archive.digests()}))
        archive.finish()


def _add_weights(archive: "_TarWriter", weights: Iterable[tuple[str, Tensor]], shard_bytes: int) -> None:
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
        archive.end(f"{WEIGHTS}/{shard}", writer.finish())
        total += writer.data_bytes
    archive.add(INDEX, _json_bytes({"metadata": {"total_size": total}, "weight_map": weight_map}))


def _without_padding(weights: Iterable[tuple[str, Tensor]], vocab_size: int) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in weights:
        if name in VOCABULARY:
            if len(tensor) < vocab_size:
                raise ValueError(f"{name} has {len(tensor)} rows, fewer than model.vocab_size={vocab_size}")
            tensor = tensor[:vocab_size]
        yield name, tensor


class _TarWriter:
    """An uncompressed tar with fixed times and owners, whose members may be written before their size is
    known.
    """

    def __init__(self, stream: BinaryIO, path: Path, hasher: Executor) -> None:
        self._stream, self._path, self._hasher = stream, path, hasher
        self._header_at = 0
        self._digests: dict[str, tuple[Future[str], int]] = {}

    def digests(self) -> dict[str, dict[str, Any]]:
        """sha256 and size of the members so far; a member is read again in the background while the next is
        written.
        """
        return {
            name: {"sha256": future.result(), "bytes": size} for name, (future, size) in self._digests.items()
        }

    def begin(self) -> BinaryIO:
        """The stream, standing where the next member's content goes."""
        self._header_at = self._stream.tell()
        self._stream.seek(tarfile.BLOCKSIZE, io.SEEK_CUR)
        return self._stream

    def end(self, name: str, size: int) -> None:
        """Closes the member begun before, with `size` bytes of content."""
        content_at = self._header_at + tarfile.BLOCKSIZE
        info = tarfile.TarInfo(name)
        info.size = size
        header = info.tobuf(tarfile.GNU_FORMAT)
        if len(header) != tarfile.BLOCKSIZE:
            raise ValueError(f"{name}: a member's name may have 100 characters at most")
        self._stream.flush()
        self._digests[name] = self._hasher.submit(_sha256, self._path, content_at, size), size
        self._stream.seek(self._header_at)
        self._stream.write(header)
        self._stream.seek(content_at + size)
        self._stream.write(bytes(-size % tarfile.BLOCKSIZE))

    def add(self, name: str, content: bytes) -> None:
        """Adds a small member."""
        self.begin().write(content)
        self.end(name, len(content))

    def finish(self) -> None:
        """Writes the end of the archive."""
        self._stream.write(bytes(2 * tarfile.BLOCKSIZE))


def _safe_config(content: bytes, path: str) -> DictConfig:
    """The configuration; refuses `target` and `_target_` classes outside neva: restoring must not import code
    by name.
    """
    config = OmegaConf.create(content.decode())
    if not isinstance(config, DictConfig):
        raise ValueError(f"{path}: {CONFIG} is not a mapping")

    def walk(node: Any, where: str) -> None:
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            named = f"{where}.{key}".lstrip(".")
            if key in ("target", "_target_") and not str(value).startswith("neva."):
                raise ValueError(
                    f"{path}: {named} names the class {value!r}; only classes of neva are restored"
                )
            if isinstance(value, dict | list):
                walk(value, named)

    walk(OmegaConf.to_container(config, resolve=False), "")
    return config


def _sha256(path: Path, start: int, size: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        stream.seek(start)
        while size > 0 and (block := stream.read(min(size, 1 << 20))):
            digest.update(block)
            size -= len(block)
    return digest.hexdigest()


def _json_bytes(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _versions() -> dict[str, str]:
    versions = {"omegaconf": omegaconf.__version__}
    for package in ("neva", "torch", "transformers", "megatron-core", "nemo-toolkit"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
