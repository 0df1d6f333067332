"""From any source to any target: what is found decides which conversion it is."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from neva.convert.lazy_model import LazyModel, open_model
from neva.convert.parity.figures import write_unverified
from neva.convert.parity.original import prove_llava_original
from neva.convert.parity.proof import prove_llava
from neva.convert.readers.llava import from_llava_hf, from_llava_original, from_parts
from neva.convert.readers.nemo1 import from_old_nemo
from neva.convert.readers.nemo1_file import is_old_nemo
from neva.convert.text import text_to_hf, text_to_nemo
from neva.convert.writers.llava_hf import write_llava_hf
from neva.convert.writers.llava_original import write_llava_original
from neva.formats.atomic_write import check_source, check_target, finished_target
from neva.formats.hf_folder import read_config
from neva.formats.hf_tokenizer import tokenizer_files
from neva.formats.nemo import open_nemo, write_nemo
from neva.weights.lazy import log_progress
from neva.weights.load import is_nemo

logger = logging.getLogger(__name__)

TEXT, LLAVA_NEMO, OLD, LLAVA, LLAVA_ORIGINAL = (
    "language model",
    "LLaVA model",
    "NeVA model of NeMo 1",
    "LLaVA model in llava-hf layout",
    "LLaVA model in the original layout",
)


@dataclass(frozen=True)
class Options:
    """What a user may decide about a conversion; None leaves the decision to what is found."""

    dtype: torch.dtype | None
    layout: str
    overwrite: bool
    verify: bool
    llm_path: Path | None
    tower_path: Path | None
    tower_name: str | None
    tokenizer_path: Path | None
    adapter_type: str
    select_layer: int
    conv_template: str
    seed: int
    add_tokens: tuple[str, ...]
    vocab_multiple: int


def convert(source: Path, target: Path, options: Options) -> str:
    """Converts and returns one sentence about what was done. ValueError says what was found and what was
    expected.

    A `.nemo` becomes a Hugging Face folder, or another `.nemo` that holds every part; a folder becomes a
    `.nemo`, or, where it is a text model and `tower_path` is given, a LLaVA model with a fresh projector.
    """
    to_nemo = target.suffix == ".nemo"
    check_target(target, options.overwrite)
    found = identify(source)
    logger.info("%s is a %s", source, found)
    if options.add_tokens and not (found == TEXT and to_nemo and options.tower_path is None):
        raise ValueError("--add_tokens extends a language model on its way into a .nemo file, nothing else")
    is_text = found == TEXT and options.tower_path is None
    if options.vocab_multiple > 1 and (to_nemo or is_text or options.layout != "llava-hf"):
        raise ValueError("--pad_vocab_to pads the vocabulary of a llava-hf folder, nothing else")
    if is_text:
        if is_nemo(source) == to_nemo:
            raise ValueError(
                f"{source} and {target} are both {'.nemo files' if to_nemo else 'Hugging Face folders'}; a language "
                "model goes from one to the other"
            )
        if to_nemo:
            text_to_nemo(source, target, options.dtype, options.overwrite, options.add_tokens)
        else:
            text_to_hf(source, target, options.dtype, options.overwrite, options.verify)
        return f"{found} {source} -> {'.nemo file' if to_nemo else 'Hugging Face folder'} {target}"
    model = load_model(source, found, options)
    if to_nemo:
        write_model_nemo(model, target, options)
        return f"{found} {source} -> .nemo file {target} with all parts"
    export(model, target, options)
    return f"{found} {source} -> {options.layout} folder {target}"


def identify(source: Path) -> str:
    """What `source` holds. ValueError when it is neither a `.nemo` nor a Hugging Face folder that neva
    knows.
    """
    check_source(source)
    if is_old_nemo(source):
        return OLD
    if is_nemo(source):
        return LLAVA_NEMO if "mm_cfg" in open_nemo(source).config else TEXT
    config = read_config(source)
    if "mm_vision_tower" in config:
        return LLAVA_ORIGINAL
    return LLAVA if config.get("model_type") == "llava" else TEXT


def load_model(source: Path, found: str, options: Options) -> LazyModel:
    """The LLaVA model of `source`, with the tokenizer of `tokenizer_path` where one is given."""
    if found == OLD:
        return from_old_nemo(source, options.llm_path, options.tower_path, options.tokenizer_path)
    if is_nemo(source):
        model = open_model(source, options.llm_path, options.tower_path)
    elif found == LLAVA:
        model = from_llava_hf(source)
    elif found == LLAVA_ORIGINAL:
        model = from_llava_original(source, options.tower_path)
    else:
        assert options.tower_path is not None
        model = from_parts(
            source,
            options.tower_path,
            options.adapter_type,
            options.select_layer,
            options.conv_template,
            options.seed,
        )
    if options.tokenizer_path is None:
        return model
    return replace(
        model, tokenizer={file.name: file.read_bytes() for file in tokenizer_files(options.tokenizer_path)}
    )


def export(model: LazyModel, target: Path, options: Options) -> None:
    """Writes `target` in `options.layout` and proves it; a failed proof leaves no target."""
    with finished_target(target, options.overwrite, folder=True) as folder:
        if options.layout == "original":
            write_llava_original(model, folder, options.dtype, target, options.tower_name)
            prove: Any = prove_llava_original
        else:
            write_llava_hf(model, folder, options.dtype, options.vocab_multiple)
            prove = prove_llava
        if options.verify:
            prove(model.rounded(options.dtype), folder)
        else:
            write_unverified(folder)


def write_model_nemo(model: LazyModel, target: Path, options: Options) -> None:
    """Writes all parts of `model` into one `.nemo`; a tower that is a folder's own is recorded as frozen."""
    parts = {"language_model": "converted", "projector": "converted"}
    parts["vision_tower"] = "frozen" if model.tower_reference else "converted"
    weights = model.rounded(options.dtype).weights
    pairs = ((name, weights[name]) for name in weights)
    with model.tokenizer_dir() as tokenizer_dir:
        write_nemo(
            target,
            model.config,
            log_progress(pairs, len(model.weights), str(target)),
            tokenizer_dir,
            model.image_processor,
            model.name,
            parts,
            options.overwrite,
        )
