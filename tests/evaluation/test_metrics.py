"""Metrics against expectations that are worked out by hand, and against a slow count."""

import itertools
import random

import pytest

from neva.errors import DataError
from neva.metrics.anls import edits
from neva.metrics.metric import Reference
from neva.metrics.multiple_choice import chosen
from neva.metrics.vqa import CONTRACTIONS, normalised
from neva.registry import METRICS

OPTIONS = {"A": "a red dog", "B": "left", "C": "right", "D": "2.5"}


def score(metric: str, text: str, *answers: str, **more) -> float:
    return METRICS[metric].judge(text, Reference(answers, **more)).score


def figures(metric: str, *pairs: tuple[str, str]) -> dict[str, float]:
    verdicts = [METRICS[metric].judge(text, Reference((answer,))) for text, answer in pairs]
    return METRICS[metric].figures(verdicts)


@pytest.mark.parametrize(
    ("text", "answers", "expected"),
    [(" Teal ", ["teal"], 1), ("teal.", ["teal"], 0), ("b", ["a", "B"], 1), ("", ["a"], 0)],
)
def test_exact_match_is_the_same_word_in_any_case(text, answers, expected):
    assert score("exact_match", text, *answers) == expected


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("The Two dogs", "2 dogs"),
        ("dont, youre", "don't you're"),
        ("couldntve", "couldntve"),  # two apostrophes are missing: not in the table
        ("couldnt've", "couldn't've"),
        ("shed", "shed"),
        ("1,000", "1000"),
        ("red/blue", "red blue"),
        ("red /blue", "red blue"),
        ("St. John", "st john"),
        ("3.14", "3.14"),
        ("none\nat all", "0 at all"),
        ("eleven", "eleven"),
    ],
)
def test_answers_are_normalised_as_vqa_does(said, expected):
    assert normalised(said) == expected


def test_words_that_lack_an_apostrophe_get_it_back():
    assert len(CONTRACTIONS) == 114  # entries of vqaEval.py that lower case text can meet and that change it
    assert CONTRACTIONS["'ow'sat"] == CONTRACTIONS["ow's'at"] == "'ow's'at"
    assert not {"its", "well", "were", "shed", "id"} & set(CONTRACTIONS)


@pytest.mark.parametrize(("same", "expected"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_vqa_leaves_each_of_ten_people_out_in_turn(same, expected):
    # of 10 people, `same` gave the answer: e.g. 2: left out one of them 1/3, else 2/3: (2 * 1/3 + 8 * 2/3) / 10 = 0.6
    answers = ["a cat"] * same + [f"dog {number}" for number in range(10 - same)]
    assert score("vqa", "The cat!", *answers) == pytest.approx(expected)


def test_vqa_wants_the_answers_of_several_people():
    with pytest.raises(DataError, match="3 answers; vqa wants those of ten people"):
        score("vqa", "cat", "cat", "cat", "cat")


@pytest.mark.parametrize(
    ("text", "truth", "expected"),
    [
        ("105", "100", 1),
        ("105.1", "100", 0),
        ("95", "100", 1),
        ("52%", "0.5", 1),
        ("50", "50%", 0),
        ("0.0", "0", 0),
        ("0", "0", 1),
        ("-97", "-100", 1),
        ("Red", "red", 1),
        ("Reds", "red", 0),
    ],
)
def test_relaxed_accuracy_lets_numbers_be_five_percent_off(text, truth, expected):
    assert score("relaxed", text, truth) == expected


@pytest.mark.parametrize(
    ("text", "answers", "expected"),
    [
        ("Coca  cola", ["coca cola"], 10 / 10),
        ("coka cola", ["coca cola"], 8 / 9),
        ("abcd", ["abxy"], 0.5),
        ("abcd", ["axyz"], 0),
        ("x", ["y", "x1"], 0.5),
        ("", ["x"], 0),
    ],
)
def test_anls_is_the_share_of_letters_that_stay(text, answers, expected):
    assert score("anls", text, *answers) == pytest.approx(expected)


def test_edits_are_the_fewest():
    def slow(a: str, b: str) -> int:
        if not a or not b:
            return len(a) + len(b)
        return min(slow(a[1:], b) + 1, slow(a, b[1:]) + 1, slow(a[1:], b[1:]) + (a[0] != b[0]))

    words = ["".join(letters) for length in range(4) for letters in itertools.product("ab", repeat=length)]
    for a, b in random.Random(0).sample(list(itertools.product(words, words)), 120):
        assert edits(a, b) == slow(a, b)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("B", "B"),
        ("(B).", "B"),
        ("The answer is B, not seen", "B"),
        ("**B** because of all the bright sun that is on the left side", None),  # too far in front, too long
        ("A or B", None),
        ("I think the answer is **c**", "C"),
        ("It is the left one", "B"),
        ("left or right", None),
        ("E", None),
        ("", None),
        ("b", None),
    ],
)
def test_a_letter_is_read_out_of_an_answer(text, expected):
    assert chosen(text, OPTIONS) == expected


@pytest.mark.parametrize(
    ("answer", "options", "expected"),
    [("B", OPTIONS, 1), ("b.", OPTIONS, 1), ("left", OPTIONS, 1), ("B", {}, 1), ("C", {}, 0)],
)
def test_the_right_option_is_a_letter_or_its_text(answer, options, expected):
    assert score("multiple_choice", "B", answer, options=options) == expected


def test_a_reference_without_a_right_option_is_refused():
    with pytest.raises(
        DataError, match="its answer is 'up'; expected one of A, B, C, D, or the text of an option"
    ):
        score("multiple_choice", "B", "up", options=OPTIONS)


def test_yes_and_no_have_the_figures_of_pope():
    found = figures(
        "yes_no",
        ("Yes, it is.", "yes"),
        ("yes", "no"),
        ("No.", "no"),
        ("no", "yes"),
        ("perhaps", "yes"),
        ("yes or no", "no"),
        ("There is: yes", "Yes"),
        ("Nobody", "no"),
    )
    # said yes 3, of them right 2; 4 are yes; right 3 of 8; neither: perhaps, both, Nobody
    assert found == pytest.approx(
        {
            "accuracy": 100 * 3 / 8,
            "precision": 100 * 2 / 3,
            "recall": 100 * 2 / 4,
            "f1": 100 * 2 * (2 / 3) * (1 / 2) / (2 / 3 + 1 / 2),
            "says yes": 100 * 3 / 8,
            "says neither": 100 * 3 / 8,
        }
    )
    assert figures("yes_no", ("no", "no"))["f1"] == 0
