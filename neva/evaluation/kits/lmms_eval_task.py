"""What a task of lmms-eval made from a file of one's own asks, and how the kit's own functions score it.

It is copied beside the task's YAML and imported by lmms-eval, in the kit's environment: it imports nothing of neva.
"""

from __future__ import annotations

import base64
import io
from importlib import import_module
from typing import Any

TASKS = "lmms_eval.tasks"


def visuals(doc: dict[str, Any]) -> list[Any]:
    """Returns a question's pictures as RGB images."""
    from PIL import Image

    files = doc["pictures"] or [io.BytesIO(base64.b64decode(doc["encoded"]))]
    return [Image.open(file).convert("RGB") for file in files]


def text(doc: dict[str, Any], lmms_eval_specific_kwargs: dict[str, str]) -> str:
    """Returns a question, with its hint and options where an instruction stands behind it."""
    instruction = lmms_eval_specific_kwargs["post_prompt"]
    if not instruction:
        return str(doc["question"])
    hint = [f"Context: {doc['hint']}"] if doc["hint"] else []
    options = [f"{letter}. {option}" for letter, option in zip(doc["letters"], doc["options"], strict=True)]
    return "\n".join([*hint, doc["question"], *options]) + instruction


def exact_match(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Scores as GQA: equal to an answer, whatever case and punctuation."""
    score = import_module("lmms_eval.api.metrics").exact_match_hf_evaluate
    found = [
        score([results[0].strip()], [answer], ignore_case=True, ignore_punctuation=True)["exact_match"]
        for answer in doc["answers"]
    ]
    return {"exact_match": float(max(found))}


def vqa(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Scores as TextVQA: each person left out in turn, three others who agree."""
    score = import_module(f"{TASKS}.textvqa.utils").textvqa_process_results
    row = {"question_id": doc["index"], "answers": list(doc["answers"])}  # that function writes into it
    return {"exact_match": float(score(row, results)["exact_match"])}


def relaxed(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Scores as ChartQA: a number within 5 %, anything else the same."""
    is_right = import_module(f"{TASKS}.chartqa.utils").relaxed_correctness
    return {"relaxed_overall": float(any(is_right(results[0].strip(), answer) for answer in doc["answers"]))}


def anls(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Scores as DocVQA: 1 - edits / letters."""
    score = import_module("lmms_eval.api.metrics").anls
    return {"anls": float(score(references=doc["answers"], predictions=results)["anls"])}


def multiple_choice(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Scores the letter that the kit's shared function reads out of an answer."""
    read = import_module(f"{TASKS}._task_utils.mcq_extract").extract_mcq_answer
    return {"accuracy": float(read(results[0], list(doc["letters"])) == doc["answers"][0])}


def yes_no(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
    """Scores as POPE."""
    score = import_module(f"{TASKS}.pope.utils").pope_process_results
    row = {"question_id": doc["index"], "answer": doc["answers"][0], "category": None}
    return dict(score(row, results))


def pope(results: list[Any], figure: str) -> float:
    """Returns a figure of POPE over all questions."""
    return float(getattr(import_module(f"{TASKS}.pope.utils"), f"pope_aggregate_{figure}")(results))


def pope_accuracy(results: list[Any]) -> float:
    """Returns POPE's accuracy."""
    return pope(results, "accuracy")


def pope_precision(results: list[Any]) -> float:
    """Returns POPE's precision of `yes`."""
    return pope(results, "precision")


def pope_recall(results: list[Any]) -> float:
    """Returns POPE's recall of `yes`."""
    return pope(results, "recall")


def pope_f1_score(results: list[Any]) -> float:
    """Returns POPE's F1 of `yes`."""
    return pope(results, "f1_score")
