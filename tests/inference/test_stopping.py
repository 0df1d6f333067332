"""End strings found as an answer grows, against the whole answer decoded after every token."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from neva.inference.stopping import EndStrings

WORDS = ["a", "b", "ab", "###", "#", ".", ",", "n't", " ", "  ", "\n", "</s>", "<|im_end|>", "é", "世", "🙂"]
TEXTS = "ab.#🙂世é \n"


def byte_fallback() -> Tokenizer:
    """LLaMA's kind: a mark for spaces, characters that it does not know as bytes, the first space left out."""
    pieces = [word.replace(" ", "▁") for word in WORDS if word.isascii()] + ["▁a", "▁", "▁#"]
    names = list(dict.fromkeys([f"<0x{byte:02X}>" for byte in range(256)] + pieces))
    tokenizer = Tokenizer(
        models.BPE({name: number for number, name in enumerate(names)}, [], byte_fallback=True)
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def byte_level() -> Tokenizer:
    """GPT-2's kind: a character may take several tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = list(dict.fromkeys([*alphabet, "ab", "##", "Ġa", "ĠĠ"]))
    tokenizer = Tokenizer(models.BPE({name: number for number, name in enumerate(names)}, []))
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def decoder_of(tokenizer: Tokenizer, cleans_up: bool) -> Callable[[list[int]], str]:
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=cleans_up)
    return lambda ids: str(fast.decode(ids, skip_special_tokens=False))


def random_answer(tokenizer: Tokenizer, draw: random.Random) -> list[int]:
    """Ids of any tokens, and of the bytes of whole characters."""
    ids: list[int] = []
    vocabulary = tokenizer.get_vocab()
    byte_names = pre_tokenizers.ByteLevel(add_prefix_space=False)
    while len(ids) < 120:
        if draw.random() < 0.3:
            ids.append(draw.randrange(len(vocabulary)))
            continue
        character = draw.choice(TEXTS)
        names = [f"<0x{byte:02X}>" for byte in character.encode()]
        if names[0] not in vocabulary:
            names = list(byte_names.pre_tokenize_str(character)[0][0])
        ids += [vocabulary[name] for name in names]
    return ids


@pytest.mark.parametrize("cleans_up", [False, True], ids=["as it is", "cleaned up"])
@pytest.mark.parametrize("build", [byte_fallback, byte_level])
@pytest.mark.parametrize("seed", range(20))
def test_an_answer_ends_at_the_token_at_which_the_whole_text_would_end_it(
    build: Callable[[], Tokenizer], cleans_up: bool, seed: int
) -> None:
    draw, tokenizer = random.Random(seed), build()
    decode = decoder_of(tokenizer, cleans_up)
    ids = random_answer(tokenizer, draw)
    text, first = decode(ids), draw.choice([1, 1, 30])
    starts = [draw.randrange(len(text)) for _ in range(3)]
    ends = [text[start : start + draw.randint(2, 12)] for start in starts]
    found = EndStrings(ends, decode)
    for length in range(first, len(ids) + 1):
        expected = any(end in decode(ids[:length]) for end in ends)
        assert found(ids[:length]) == expected
        if expected:
            break


def test_the_tokens_decoded_grow_with_the_answer_and_not_with_its_square() -> None:
    decode, decoded = decoder_of(byte_level(), False), 0

    def counted(ids: list[int]) -> str:
        nonlocal decoded
        decoded += len(ids)
        return decode(ids)

    found, draw = EndStrings(["an end that never comes"], counted), random.Random(0)
    ids = [draw.randrange(33, 90) for _ in range(2000)]
    for length in range(1, len(ids) + 1):
        assert not found(ids[:length])
    assert decoded < 100 * len(ids)  # a decoding of the whole each time takes 1000 for each token


def test_without_end_strings_nothing_is_decoded() -> None:
    assert not EndStrings([], lambda _: pytest.fail("decoded"))([1, 2])


def test_what_only_the_start_of_a_part_shows_ends_nothing() -> None:
    """Some decoders write the first letter of a text in capitals."""
    found = EndStrings(["A"], lambda ids: "".join(map(chr, ids)).capitalize())
    ids = [ord("b"), *[ord("a")] * 200]
    assert not any(found(ids[:length]) for length in range(1, len(ids) + 1))
    assert found([*ids, *[ord("b")] * 3]) is False


def test_a_character_of_several_tokens_is_never_cut() -> None:
    tokenizer = byte_fallback()
    decode, vocabulary = decoder_of(tokenizer, False), tokenizer.get_vocab()
    text = "🙂" * 30 + "é"
    ids = [vocabulary["a"], *[vocabulary[f"<0x{byte:02X}>"] for byte in text.encode()]]
    found = EndStrings(["🙂é"], decode)
    ended = [found(ids[:length]) for length in range(1, len(ids) + 1)]
    assert ended == [False] * (len(ids) - 1) + [True]
