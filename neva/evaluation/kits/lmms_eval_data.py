"""Questions of one's own as lmms-eval reads them: a task's YAML, its questions as JSON lines, its functions."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neva.errors import DataError
from neva.evaluation.kits.local_data import LONGEST_NUMBER, LocalData, LocalQuestion
from neva.formats.json import json_line

FUNCTIONS = Path(__file__).with_name("lmms_eval_task.py")
WORDS = "\nAnswer the question using a single word or phrase."
FIGURES: dict[str, tuple[str, tuple[str, ...]]] = {
    "exact_match": (WORDS, ("exact_match",)),
    "vqa": (WORDS, ("exact_match",)),
    "relaxed": ("\nAnswer the question with a single word.", ("relaxed_overall",)),
    "anls": (WORDS, ("anls",)),
    "multiple_choice": (
        "\nAnswer with the option's letter from the given choices directly.",
        ("accuracy",),
    ),
    "yes_no": (WORDS, ("pope_accuracy", "pope_precision", "pope_recall", "pope_f1_score")),
}
"""Instruction and figures of the kit's own benchmark that is scored so, by neva's metric.

Those are GQA, TextVQA, ChartQA, DocVQA, AI2D and POPE.
"""


def write_task(data: LocalData, folder: Path, max_new_tokens: int, is_plain: bool) -> None:
    """Writes `NAME.yaml` and `NAME.jsonl`, and the functions that they name.

    Args:
        data: the questions.
        folder: of tasks.
        max_new_tokens: of an answer.
        is_plain: ask the questions as they stand.

    Raises:
        DataError: a question whose picture is that of a row that does not exist.
    """
    encoded = {question.index: question.encoded for question in data.questions}
    questions = folder / f"{data.name()}.jsonl"
    questions.write_text(
        "".join(json_line(_row(question, encoded)) for question in data.questions), encoding="utf-8"
    )
    shutil.copyfile(FUNCTIONS, folder / "utils.py")
    text = _yaml(data, questions, max_new_tokens, is_plain)
    (folder / f"{data.name()}.yaml").write_text(text, encoding="utf-8")


def _row(question: LocalQuestion, encoded: Mapping[str, str | None]) -> dict[str, Any]:
    content = question.encoded
    if content is not None and len(content) <= LONGEST_NUMBER:
        content = encoded.get(content)
        if content is None:
            raise DataError(
                f"{question.place} has the picture of row {question.encoded!r}, which the file does not have"
            )
    truth = question.truth
    return {
        "index": question.index,
        "question": question.text,
        "hint": question.hint or "",
        "pictures": list(question.pictures),
        "encoded": content or "",
        "letters": list(truth.options),
        "options": list(truth.options.values()),
        "answers": list(truth.answers),
        "answer": truth.answers[0],
    }


def _yaml(data: LocalData, questions: Path, max_new_tokens: int, is_plain: bool) -> str:
    """Returns the task. It is no dump of a tree, because the kit marks functions by a tag of its own; JSON is YAML."""
    instruction, figures = FIGURES[data.metric]
    metrics = [
        f"  - metric: {figure}\n    higher_is_better: true\n    aggregation: "
        + (f"!function utils.{figure}" if figure.startswith("pope") else "mean")
        for figure in figures
    ]
    settings = {
        "task": data.name(),
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(questions)}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_target": "answer",
        "generation_kwargs": {"max_new_tokens": max_new_tokens, "temperature": 0, "do_sample": False},
        "lmms_eval_specific_kwargs": {
            "default": {"pre_prompt": "", "post_prompt": "" if is_plain else instruction}
        },
        "metadata": [{"version": 1.0}],
    }
    functions = {"doc_to_visual": "visuals", "doc_to_text": "text", "process_results": data.metric}
    lines = [f"{key}: {json.dumps(value)}" for key, value in settings.items()]
    lines += [f"{key}: !function utils.{name}" for key, name in functions.items()]
    return "\n".join([*lines, "metric_list:", *metrics]) + "\n"
