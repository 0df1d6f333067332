"""What the quickstart measured: accuracy beside two baselines, and a contact sheet."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path

from PIL import Image

from examples.quickstart.data import COLOURS, SHAPES, questions

SHOWN, MISTAKES = 16, 4
"""Test images on the contact sheet, and how many of them are mistakes where there are so many."""


def read_predictions(path: Path) -> list[dict[str, str]]:
    """Returns the rows of a result file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def is_right(row: dict[str, str]) -> bool:
    """Whether the generated text is the answer, word for word."""
    return row["text"].strip().lower() == row["truth"]


def accuracy(rows: list[dict[str, str]]) -> dict[str, float]:
    """Returns the share of right answers, over all rows and by kind of answer."""
    kinds = defaultdict(list)
    for row in rows:
        kinds["all"].append(is_right(row))
        kinds[kind(row["truth"])].append(is_right(row))
    return {name: sum(right) / len(right) for name, right in kinds.items()}


def kind(answer: str) -> str:
    """Returns `colour`, `shape` or `yes/no`."""
    return "colour" if answer in COLOURS else "shape" if answer in SHAPES else "yes/no"


def baselines() -> dict[str, float]:
    """Returns the accuracy of not looking: each question's most frequent training answer, and always "yes"."""
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for row in questions("train"):
        answers[row.text][row.answer] += 1
    test = questions("test")
    by_question = [answers[row.text].most_common(1)[0][0] if row.text in answers else "yes" for row in test]
    return {
        "question only": sum(guess == row.answer for guess, row in zip(by_question, test, strict=True))
        / len(test),
        'always "yes"': sum(row.answer == "yes" for row in test) / len(test),
    }


def chosen(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Returns `SHOWN` rows from all over the file, right answers first, then `MISTAKES` wrong ones.

    Where there are fewer of one kind, there are more of the other.
    """
    right, wrong = ([row for row in rows if is_right(row) is kind] for kind in (True, False))
    num_wrong = min(len(wrong), max(MISTAKES, SHOWN - len(right)))
    return [*_spread(right, SHOWN - num_wrong), *_spread(wrong, num_wrong)]


def _spread(rows: list[dict[str, str]], count: int) -> list[dict[str, str]]:
    """Returns `count` rows, all if there are fewer, at even distances."""
    count = min(count, len(rows))
    return [rows[number * len(rows) // count] for number in range(count)]


def draw_contact_sheet(rows: list[dict[str, str]], image_folder: Path, path: Path) -> None:
    """Draws 16 test images with question, answer and truth; the last four are mistakes, where there are any."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = chosen(rows)
    figure, axes = plt.subplots(4, 4, figsize=(11, 12), layout="constrained")
    for axis, row in zip(axes.flat, shown, strict=False):
        with Image.open(image_folder / row["image"]) as image:
            axis.imshow(image, interpolation="nearest")
        colour = "tab:green" if is_right(row) else "tab:red"
        question = row["prompt"].replace("<image>\n", "")
        axis.set_title(f"{question}\nanswer: {row['text']}   truth: {row['truth']}", fontsize=8, color=colour)
    for axis in axes.flat:
        axis.axis("off")
    figure.savefig(path, dpi=110)
    plt.close(figure)
