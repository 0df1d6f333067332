"""The `.nemo` at the end of a run."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator, Mapping

import torch.distributed as dist
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from neva.convert.nemo import write_nemo
from neva.data.media import build_image_processor
from neva.model.llava import NevaModel


def save(
    path: str,
    model_cfg: DictConfig,
    model: NevaModel,
    parts: Collection[str],
    tokenizer: PreTrainedTokenizerBase,
    sources: Mapping[str, str],
    trained: Collection[str],
    is_writer: bool,
) -> None:
    """Writes configuration, tokenizer, image processor and the weights of `parts`. Called by every rank.

    Args:
        path: the `.nemo` file; one that is there is replaced when the new one is complete.
        model_cfg: the resolved `model` section.
        parts: names of the parts to save; the others are named by their `from_pretrained` in the configuration.
        sources: where each part's first weights came from, for the manifest.
        trained: names of the parts that this run trained.
        is_writer: whether this rank writes.
    """
    if is_writer:
        with tempfile.TemporaryDirectory() as tokenizer_dir:
            tokenizer.save_pretrained(tokenizer_dir)
            write_nemo(
                path,
                portable_config(model_cfg),
                _tensors(model, parts),
                tokenizer_dir,
                build_image_processor(model_cfg.mm_cfg.vision_encoder).to_dict(),
                source=", ".join(f"{name} from {origin}" for name, origin in sources.items()),
                parts={name: "trained" if name in trained else "frozen" for name in sources},
                overwrite=True,
            )
    dist.barrier()


def portable_config(model_cfg: DictConfig) -> DictConfig:
    """Returns the configuration without the class name and version that NeMo adds: restoring names no class."""
    added = ("target", "nemo_version")
    return OmegaConf.masked_copy(model_cfg, [str(key) for key in model_cfg if key not in added])


def _tensors(model: NevaModel, parts: Collection[str]) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in model.named_parameters():
        if name.split(".", 1)[0] in parts:
            yield name, parameter.detach().cpu()
