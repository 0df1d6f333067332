"""The `.nemo` at the end of a run."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from transformers import PreTrainedTokenizerBase

from neva.checkpoint import store
from neva.checkpoint.state import sharded_state
from neva.data.media.processor import build_image_processor
from neva.distributed.backend import Backend
from neva.formats.nemo import write_nemo
from neva.model.llava import NevaModel

AVERAGED = "-EMA"
"""Ends the name of a `.nemo` with a moving average of the weights, as NeMo calls it."""


def averaged(path: str) -> str:
    """Returns the name of the `.nemo` with the average beside that with the weights."""
    whole = Path(path)
    return str(whole.with_name(f"{whole.stem}{AVERAGED}{whole.suffix}"))


def save(
    path: str,
    model_cfg: DictConfig,
    backend: Backend,
    models: Sequence[NevaModel],
    parts: Collection[str],
    tokenizer: PreTrainedTokenizerBase,
    sources: Mapping[str, str],
    trained: Collection[str],
    is_writer: bool,
    base: Mapping[str, Mapping[str, str]] | None = None,
) -> None:
    """Writes configuration, tokenizer, image processor and the weights of `parts`. Called by every rank.

    Args:
        path: the `.nemo` file; one that is there is replaced when the new one is complete.
        model_cfg: the resolved `model` section.
        backend: how the model is spread.
        models: the virtual stages of the model that this rank holds.
        parts: names of the parts to save; the others are named by their `from_pretrained` in the configuration.
        sources: where each part's first weights came from, for the manifest.
        trained: names of the parts that this run trained.
        is_writer: whether this rank writes.
        base: path and fingerprint of each part that adapters were trained beside.
    """
    # every rank writes its shards of a checkpoint; one rank reads the full tensors
    shards = Path(path).with_suffix(".shards")
    store.save(shards, sharded_state(backend, models, parts, optimizer=None), common={}, is_kept=False)
    if is_writer:
        with store.removed_on_failure(shards), tempfile.TemporaryDirectory() as tokenizer_dir:
            tokenizer.save_pretrained(tokenizer_dir)
            write_nemo(
                path,
                portable_config(model_cfg),
                full_tensors(shards),
                tokenizer_dir,
                build_image_processor(model_cfg.mm_cfg.vision_encoder).to_dict(),
                source=", ".join(f"{name} from {origin}" for name, origin in sources.items()),
                parts={name: "trained" if name in trained else "frozen" for name in sources},
                overwrite=True,
                base=base,
            )
        shutil.rmtree(shards)
    dist.barrier()


def portable_config(model_cfg: DictConfig) -> DictConfig:
    """Returns the configuration without the class name and version that NeMo adds: restoring names no class."""
    added = ("target", "nemo_version")
    return OmegaConf.masked_copy(model_cfg, [str(key) for key in model_cfg if key not in added])


def full_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Yields the full tensors of a distributed checkpoint, one in memory at a time, read by this process alone."""
    reader = FileSystemReader(folder)
    for name, stored in sorted(reader.read_metadata().state_dict_metadata.items()):
        if isinstance(stored, TensorStorageMetadata):
            tensor = torch.empty(stored.size, dtype=stored.properties.dtype)
            with warnings.catch_warnings():
                # torch remarks that one process loads alone, as asked
                warnings.simplefilter("ignore", UserWarning)
                dcp.load({name: tensor}, storage_reader=FileSystemReader(folder), no_dist=True)
            yield name, tensor
