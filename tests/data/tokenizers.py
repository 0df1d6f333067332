"""Small tokenizers made on the spot, so that the tests run where the real one is absent."""

from functools import cache
from pathlib import Path

from omegaconf import OmegaConf
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from neva.data.tokenizer import load_tokenizer
from neva.registry import TEMPLATES
from tests.conftest import shared_data

CORPUS = [
    TEMPLATES["v1"].default_system,
    TEMPLATES["chatml"].default_system,
    "USER: What is in the picture? ASSISTANT: A red circle.",
    "user\nIs there a triangle?\n assistant\nYes\nNo",
]


@cache
def vicuna() -> PreTrainedTokenizerFast:
    """The real LLaMA/Vicuna tokenizer."""
    return load_tokenizer(
        OmegaConf.create({"library": "huggingface", "type": str(shared_data("tokenizer", "vicuna"))})
    )


def llama_like(folder: Path) -> PreTrainedTokenizerFast:
    """Sentencepiece-like: spaces become `▁` and every text begins with one; `<unk>` 0, `<s>` 1, `</s>` 2."""
    return _sentencepiece_like(folder, splits_words=True)


def joins_words(folder: Path) -> PreTrainedTokenizerFast:
    """What one gets who trains BPE without splitting at spaces first: pieces that end one word and begin the next."""
    return _sentencepiece_like(folder, splits_words=False)


def _sentencepiece_like(folder: Path, splits_words: bool) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    if splits_words:
        tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = BpeTrainer(vocab_size=200, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return _load(tokenizer, folder)


def chatml(folder: Path) -> PreTrainedTokenizerFast:
    """Qwen-like: byte-level BPE without a beginning-of-sequence token, end of sequence `<|im_end|>`."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer_config.json").write_text(
        '{"eos_token": {"content": "<|im_end|>"}, "bos_token": null}'
    )
    return _load(tokenizer, folder)


CONTROL = {
    "<s>": True,
    "</s>": True,
    **dict.fromkeys(("<|im_start|>", "<|im_end|>", "<end_of_utterance>", "<im_start>", "<im_end>"), True),
    **dict.fromkeys(("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), True),
    **dict.fromkeys((f"<extra_id_{number}>" for number in range(8)), False),
}
"""The control tokens of all templates, and whether the tokenizer calls them special."""


@cache
def of_bytes() -> PreTrainedTokenizerFast:
    """A token for each byte of UTF-8 and each control token of any template, so that ids are text and back."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(token, special=special) for token, special in CONTROL.items()])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def _load(tokenizer: Tokenizer, folder: Path) -> PreTrainedTokenizerFast:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return load_tokenizer(OmegaConf.create({"library": "huggingface", "type": str(folder)}))
