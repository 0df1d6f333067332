"""Pieces of a growing answer add up to the answer, and nothing is sent that has to be taken back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neva.serving.text import TextInPieces

TEXTS = st.text(st.sampled_from("ab \n#é日🙂"), max_size=30)


def decode(ids: list[int]) -> str:
    """Bytes as ids: a character may take four of them."""
    return bytes(ids).decode("utf-8", "replace")


def pieces_of(text: str, ends: list[str], step: int = 1) -> list[str]:
    ids = list(text.encode())
    growing = TextInPieces(decode, ends)
    found = [growing.add(ids[first : first + step]) for first in range(0, len(ids), step)]
    return [*found, growing.rest()]


@given(TEXTS, st.lists(st.sampled_from(["##", "b#a", "日é", "a\n"]), max_size=3), st.integers(1, 3))
def test_pieces_add_up_to_the_text_in_front_of_the_first_end(text: str, ends: list[str], step: int) -> None:
    places = [place for end in ends if (place := text.find(end)) >= 0]
    assert "".join(pieces_of(text, ends, step)) == text[: min(places, default=len(text))].strip()


@pytest.mark.parametrize(
    ("text", "ends", "expected"),
    [
        ("ab##c", ["##"], ["a", "b", "", "", "", ""]),
        ("a#b", ["##"], ["a", "", "#b", ""]),
        (" a b ", [], ["", "a", "", " b", "", ""]),
        ("é!", [], ["", "é", "!", ""]),
    ],
)
def test_a_piece_is_sent_as_soon_as_it_stays(text: str, ends: list[str], expected: list[str]) -> None:
    assert pieces_of(text, ends) == expected


@given(st.lists(st.sampled_from(["", "this", "is", "it"]), max_size=8))
def test_tokens_without_text_take_no_space_from_their_neighbours(words: list[str]) -> None:
    growing = TextInPieces(lambda ids: " ".join(words[at] for at in ids if words[at]), [])
    pieces = [growing.add([at]) for at in range(len(words))]
    assert "".join([*pieces, growing.rest()]) == " ".join(word for word in words if word)


def test_what_no_character_is_made_of_comes_at_the_end() -> None:
    growing = TextInPieces(decode, [])
    assert [growing.add([97]), growing.add([0xF0]), growing.rest()] == ["a", "", "\ufffd"]
