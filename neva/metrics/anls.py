"""ANLS, the average normalised Levenshtein similarity of documents and scene text.

Source: https://arxiv.org/abs/1907.00490, as the evaluation script of the Robust Reading Competition has it.
"""

from __future__ import annotations

from collections.abc import Sequence

from neva.metrics.metric import Reference, Verdict, best, register_metric

THRESHOLD = 0.5
"""A similarity below it counts as none."""


def judge(text: str, reference: Reference) -> Verdict:
    """Returns the similarity with the closest answer of the reference."""
    return best([Verdict(similarity(text, answer), text.strip(), answer) for answer in reference.answers])


def similarity(said: str, truth: str) -> float:
    """Returns `1 - edits / length of the longer`, in lower case with single spaces; below 0.5: 0.

    As in the script, the lengths are those of the texts as they are.
    """
    length = max(len(said), len(truth))
    if length == 0:
        return 1.0
    found = 1 - edits(" ".join(said.lower().split()), " ".join(truth.lower().split())) / length
    return found if found >= THRESHOLD else 0.0


def edits(first: Sequence[str], second: Sequence[str]) -> int:
    """Returns how many letters must be put in, taken out or replaced to turn `first` into `second`."""
    row = list(range(len(second) + 1))
    for i, letter in enumerate(first, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(second, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (letter != other))
    return row[-1]


def figures(verdicts: Sequence[Verdict]) -> dict[str, float]:
    """Returns the mean similarity in percent."""
    return {"anls": 100 * sum(verdict.score for verdict in verdicts) / len(verdicts)}


register_metric("anls", "similarity of letters, for documents and scene text", judge, figures)
