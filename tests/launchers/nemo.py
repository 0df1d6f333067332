"""The members of `.nemo` files that are read before any weight."""

import json
import tarfile
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import yaml

VICUNA = {
    "num_layers": 32,
    "hidden_size": 4096,
    "ffn_hidden_size": 11008,
    "num_attention_heads": 32,
    "num_query_groups": 32,
    "kv_channels": 128,
    "vocab_size": 32128,
    "rotary_base": 10000.0,
    "layernorm_epsilon": 1e-5,
    "share_embeddings_and_output_weights": False,
    "add_qkv_bias": False,
    "qk_layernorm": False,
}


MISTRAL = {
    **VICUNA,
    "ffn_hidden_size": 14336,
    "num_query_groups": 8,
    "vocab_size": 32768,
    "rotary_base": 1000000.0,
}


def write_nemo(
    path: Path, language_model: str | None, tensors: list[str], sizes: Mapping[str, object] = VICUNA
) -> Path:
    """The members of a `.nemo` that are read before any weight."""
    path.parent.mkdir(parents=True, exist_ok=True)
    section = {**sizes, "mm_cfg": {"llm": {"from_pretrained": language_model}}}
    members = {
        "model_config.yaml": yaml.safe_dump(section),
        "model_weights/model.safetensors.index.json": json.dumps({"weight_map": dict.fromkeys(tensors, "x")}),
    }
    with tarfile.open(path, "w") as archive:
        for name, text in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            archive.addfile(member, BytesIO(text.encode()))
    return path
