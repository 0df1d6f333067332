"""`model.tokenizer.*`."""

from dataclasses import dataclass
from typing import Any

from neva.config.keys.field import key, refused

_TOKENIZER = "neva reads tokenizer.json (model.tokenizer.type) and sentencepiece (model.tokenizer.model) only"
_SPECIAL_TOKENS = "image positions have ids outside the vocabulary, so no special tokens are needed"


@dataclass
class Tokenizer:
    """The tokenizer."""

    library: str = key(
        "huggingface: tokenizer.json; sentencepiece: tokenizer.model.",
        choices=("huggingface", "sentencepiece"),
        not_yet={"megatron": _TOKENIZER},
    )
    type: str | None = key("With huggingface: folder of tokenizer.json, or a .nemo.", common=True)
    model: str | None = key("With sentencepiece: the tokenizer.model file.")

    vocab_file: Any = refused(None, why=_TOKENIZER)
    merge_file: Any = refused(None, why=_TOKENIZER)
    delimiter: Any = refused(None, why=_TOKENIZER)
    sentencepiece_legacy: Any = refused(False, why=_TOKENIZER)
    additional_special_tokens: Any = refused(None, [], why=_SPECIAL_TOKENS)
