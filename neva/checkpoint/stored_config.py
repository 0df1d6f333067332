"""The configuration that a checkpoint was saved with."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingException
from omegaconf import DictConfig, OmegaConf
from transformers import PreTrainedTokenizerFast

from neva.checkpoint.store import LIGHTNING_STATE
from neva.config.resumed import tree_of

CONFIG, TOKENIZER = "config", "tokenizer"
"""Names in a checkpoint's own state: the resolved tree as YAML, and what tells one tokenizer from another."""


def config_state(cfg: DictConfig, tokenizer: str) -> dict[str, str]:
    """Returns what a checkpoint holds of a resolved tree and of the tokenizer's digest."""
    return {CONFIG: OmegaConf.to_yaml(cfg, resolve=True), TOKENIZER: tokenizer}


def tokenizer_digest(tokenizer: PreTrainedTokenizerFast) -> str:
    """Returns what tells a tokenizer, fresh from its files, from another, wherever the files lie."""
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()[:16]


def stored_config(folder: Path) -> tuple[DictConfig, str] | None:
    """Returns tree and tokenizer's digest of a checkpoint; None: it is of before there was such a thing, or damaged."""
    state = stored_state(folder)
    return (tree_of(state[CONFIG]), state[TOKENIZER]) if CONFIG in state else None


def stored_state(folder: Path) -> Mapping[str, Any]:
    """Returns what a checkpoint keeps for Lightning; nothing of a damaged one.

    Damage is told by whoever reads the weights.
    """
    try:
        state: Mapping[str, Any] = dist_checkpointing.load_common_state_dict(str(folder))[LIGHTNING_STATE]
    except (CheckpointingException, OSError, RuntimeError, EOFError, KeyError, pickle.UnpicklingError):
        return {}
    return state
