"""Loads fast tokenizers from local files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from omegaconf import DictConfig
from sentencepiece import SentencePieceProcessor
from tokenizers import AddedToken, Tokenizer, decoders, normalizers
from tokenizers.models import BPE
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import SentencePieceExtractor, generate_merges

from neva.errors import ConfigError, DataError, reason
from neva.formats.hf_files import SPECIAL_TOKENS, TOKENIZER_CONFIG
from neva.formats.hf_tokenizer import load_backend, read_added_tokens, read_roles
from neva.formats.nemo_header import nemo_tokenizer
from neva.formats.vocabulary import parse_tokenizer


def load_tokenizer(tokenizer_cfg: DictConfig) -> PreTrainedTokenizerFast:
    """Loads the tokenizer of `model.tokenizer`.

    That is `library` huggingface with the folder (or tokenizer.json) `type`, or sentencepiece with the file `model`.

    Returns:
        A tokenizer with an end-of-sequence and a padding token (the unknown token where none is named, as in LLaVA).

    Raises:
        ConfigError: a library that is not read.
        DataError: naming the file or the token that is missing.
    """
    if tokenizer_cfg.library == "huggingface":
        tokenizer = from_folder(Path(tokenizer_cfg.type))
    elif tokenizer_cfg.library == "sentencepiece":
        tokenizer = from_sentencepiece(Path(tokenizer_cfg.model))
    else:
        raise ConfigError(
            f"model.tokenizer.library is {tokenizer_cfg.library!r}; neva reads huggingface and sentencepiece"
        )
    if not tokenizer.eos_token:
        raise DataError(
            f"the tokenizer {tokenizer.name_or_path!r} names no end-of-sequence token; "
            "put eos_token into a tokenizer_config.json beside it"
        )
    if not tokenizer.pad_token:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return tokenizer


def from_folder(path: Path) -> PreTrainedTokenizerFast:
    """Loads the tokenizer of a folder, or the one inside a `.nemo` (or the folder it was extracted to).

    A tokenizer.json is taken word for word: transformers' own LLaMA class would rebuild it with other spaces after
    special tokens. Else a tokenizer.model is read, or whatever transformers can convert.

    Raises:
        DataError: there is none, or none that is fast.
    """
    file = path / "tokenizer.json" if path.is_dir() else path
    if not (path.is_dir() and file.is_file()) and (files := nemo_tokenizer(str(path))) is not None:
        return _from_nemo(path, files)
    if file.is_file():
        return _from_json(file)
    if not path.is_dir():
        raise DataError(f"model.tokenizer.type: no folder or tokenizer.json at {path}")
    if (path / "tokenizer.model").is_file():
        return _from_model_folder(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path), local_files_only=True)
    except Exception as error:  # whatever the files make transformers and tokenizers raise
        raise DataError(
            f"model.tokenizer.type: {path} has no tokenizer.json or tokenizer.model, and transformers cannot "
            f"load it: {reason(error)}"
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise DataError(f"model.tokenizer.type: {path} gives no fast tokenizer; provide its tokenizer.json")
    return tokenizer


def from_sentencepiece(file: Path) -> PreTrainedTokenizerFast:
    """Converts a LLaMA-type tokenizer.model to a fast tokenizer, spaces after special tokens as in LLaVA (`legacy`).

    Raises:
        DataError: there is no such file, or the converted tokenizer does not agree with sentencepiece itself.
    """
    if not file.is_file():
        raise DataError(f"model.tokenizer.model: no file at {file}")
    try:
        original = SentencePieceProcessor(model_file=str(file))
        backend = _convert(SentencePieceExtractor(str(file)))
    except Exception as error:  # of sentencepiece, protobuf or tokenizers, which share no class
        raise DataError(
            f"{file} is not a sentencepiece model of BPE ({reason(error)}); fetch it again"
        ) from error
    special = {
        name: original.id_to_piece(number)
        for name, number in (
            ("bos_token", original.bos_id()),
            ("eos_token", original.eos_id()),
            ("unk_token", original.unk_id()),
            ("pad_token", original.pad_id()),
        )
        if number >= 0
    }
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, name_or_path=str(file), **special)
    for text in ("Hello  world", " a", "ﬁne ½ Ａ é", "漢字\n\t<b>1234</b>"):
        found, expected = tokenizer.encode(text, add_special_tokens=False), original.encode(text)
        if found != expected:
            raise DataError(
                f"{file} cannot be converted faithfully: {text!r} becomes {found}, sentencepiece says "
                f"{expected}; use the model's tokenizer.json with model.tokenizer.library=huggingface"
            )
    return tokenizer


def _convert(source: SentencePieceExtractor) -> Tokenizer:
    """Returns what transformers' `LlamaConverter` with `legacy` made of a sentencepiece model before it broke (5.x)."""
    pieces = source.proto.pieces
    vocabulary = {piece.piece: number for number, piece in enumerate(pieces)}
    settings, normalizer = source.proto.trainer_spec, source.proto.normalizer_spec
    tokenizer = Tokenizer(
        BPE(
            vocab=vocabulary,
            # Ordered by the pieces' scores, as sentencepiece merges.
            merges=generate_merges(vocabulary, {piece.piece: piece.score for piece in pieces}),
            unk_token=settings.unk_piece,
            fuse_unk=True,
            byte_fallback=settings.byte_fallback,
        )
    )
    steps: list[normalizers.Normalizer] = []
    if normalizer.precompiled_charsmap:
        steps.append(normalizers.Precompiled(normalizer.precompiled_charsmap))
    if normalizer.add_dummy_prefix:
        steps.append(normalizers.Prepend("▁"))
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    control, user_defined = 3, 4
    tokenizer.add_tokens(
        [
            AddedToken(piece.piece, normalized=False, special=piece.type == control)
            for piece in pieces
            if piece.type in (control, user_defined)
        ]
    )
    return tokenizer


def _from_model_folder(folder: Path) -> PreTrainedTokenizerFast:
    """Loads a tokenizer.model with what the files beside it add: tokens behind its own, and names for its roles."""
    tokenizer = from_sentencepiece(folder / "tokenizer.model")
    for number, token in sorted(read_added_tokens(folder).items()):
        flags = {name: token.get(name, False) for name in ("single_word", "lstrip", "rstrip", "normalized")}
        tokenizer.add_tokens([AddedToken(token["content"], special=token.get("special", True), **flags)])
        if (found := tokenizer.convert_tokens_to_ids(token["content"])) != number:
            raise DataError(
                f"{folder}: the added token {token['content']!r} should have id {number}, but behind tokenizer.model "
                f"it gets {found}; give the model's tokenizer.json"
            )
    for role, name in read_roles(folder).items():
        setattr(tokenizer, role, name)
    tokenizer.name_or_path = str(folder)
    return tokenizer


def _from_nemo(path: Path, files: Mapping[str, bytes]) -> PreTrainedTokenizerFast:
    if not {"tokenizer.json", "tokenizer.model"} & files.keys():
        raise DataError(f"model.tokenizer.type: {path} holds no tokenizer.json; give the tokenizer's folder")
    with TemporaryDirectory() as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
        tokenizer = from_folder(Path(folder))
    tokenizer.name_or_path = str(path)
    return tokenizer


def _from_json(file: Path) -> PreTrainedTokenizerFast:
    roles, content = read_roles(file.parent), file.read_bytes()
    if not (file.parent / TOKENIZER_CONFIG).is_file():
        added = parse_tokenizer(content, file)["added_tokens"]
        special = {token["content"] for token in added if token["special"]}
        roles = {name: token for name, token in SPECIAL_TOKENS.items() if token in special} | roles
    backend = load_backend(content, file)
    backend.no_truncation()
    backend.no_padding()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, name_or_path=str(file.parent), clean_up_tokenization_spaces=False, **roles
    )
