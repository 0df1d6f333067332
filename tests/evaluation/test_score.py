"""Answers and references that belong together, results that are kept, and two of them compared."""

import base64
import json
import sys

import pytest

from neva import cli
from neva.errors import ConfigError, DataError
from neva.evaluation.kits.local_data import read_local
from neva.evaluation.kits.vlmevalkit_data import kit_class, kit_name, write_tsv
from neva.metrics.reference import read_rows, reference_of

QUESTIONS = [
    {"prompt": "<image>\nwhat shape?", "image": "0.png", "truth": "circle", "category": "shape"},
    {"prompt": "<image>\nwhat colour?", "image": "0.png", "truth": "red", "category": "colour"},
    {"prompt": "<image>\nwhat shape?", "image": "1.png", "truth": "triangle", "category": "shape"},
]
TEXTS = ["Circle", "blue", "triangle"]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def answers(folder, rows=QUESTIONS, texts=TEXTS, name="answers.jsonl"):
    lines = [
        {**row, "text": text, "full_text": f"USER: {row['prompt']} ASSISTANT: {text}", "model_id": "my.nemo"}
        for row, text in zip(rows, texts, strict=True)
    ]
    return write(folder / name, lines)


def evaluate(*words):
    return cli.main(["evaluate", *map(str, words)])


def test_answers_are_scored_by_category_and_kept(tmp_path, capsys):
    file, truth = answers(tmp_path), write(tmp_path / "test.jsonl", QUESTIONS)
    assert evaluate(file, "--reference", truth, "--metric", "exact_match") == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()[2:6]] == [
        ["category", "questions", "accuracy"],
        ["all", "3", "66.67"],
        ["shape", "2", "100.00"],
        ["colour", "1", "0.00"],
    ]
    folder = tmp_path / "answers.evaluation"
    entry = json.loads((folder / "results.json").read_text())["benchmarks"]["neva/answers.exact_match"]
    assert (entry["metric"], round(entry["score"], 2), entry["questions"]) == ("accuracy", 66.67, 3)
    assert entry["first_prompt"] == "USER: <image>\nwhat shape? ASSISTANT:"
    details = [json.loads(line) for line in (folder / entry["files"]).read_text().splitlines()]
    assert [row["score"] for row in details] == [1, 0, 1]
    assert details[1] == {**details[1], "text": "blue", "read": "blue", "right": ["red"]}


def test_a_category_that_is_called_all_counts_no_answer_twice(tmp_path, capsys):
    rows = [{**QUESTIONS[0], "category": "all"}, *QUESTIONS[1:]]
    file, truth = answers(tmp_path, rows), write(tmp_path / "test.jsonl", rows)
    assert evaluate(file, "--reference", truth, "--metric", "exact_match") == 0
    assert capsys.readouterr().out.splitlines()[3].split() == ["all", "3", "66.67"]


def test_a_score_is_replaced_only_when_that_is_asked(tmp_path, capsys):
    words = [answers(tmp_path), "--reference", tmp_path / "answers.jsonl", "--metric", "exact_match"]
    assert evaluate(*words) == 0
    assert evaluate(*words) == 1
    assert "has neva/answers.exact_match already; pass --force" in capsys.readouterr().err
    assert evaluate(*words, "--force") == 0


def test_rows_are_joined_by_key_where_both_have_one(tmp_path):
    rows = [{**row, "question_id": number} for number, row in enumerate(QUESTIONS)]
    truth = write(tmp_path / "test.jsonl", reversed(rows))
    words = ["--reference", truth, "--metric", "exact_match"]
    assert evaluate(answers(tmp_path, rows), *words) == 0
    result = json.loads((tmp_path / "answers.evaluation/results.json").read_text())
    assert round(result["benchmarks"]["neva/answers.exact_match"]["score"], 2) == 66.67


@pytest.mark.parametrize(
    ("rows", "more", "problem"),
    [
        (QUESTIONS[::-1], [], "image 1 is"),
        (QUESTIONS[:2], [], "has 3 answers"),
        ([*QUESTIONS, QUESTIONS[0]], [], "answers 3 of the 4 questions"),
        (QUESTIONS, ["--key", "image"], "image is absent from rows or twice there"),
        ([{"prompt": row["prompt"]} for row in QUESTIONS], [], "row 1: it has no answer"),
    ],
)
def test_files_that_do_not_belong_together_are_refused(tmp_path, capsys, rows, more, problem):
    truth = write(tmp_path / "test.jsonl", rows)
    assert evaluate(answers(tmp_path), "--reference", truth, "--metric", "exact_match", *more) == 1
    assert problem in capsys.readouterr().err


def test_answers_under_another_key_are_refused(tmp_path, capsys):
    truth = write(tmp_path / "test.jsonl", QUESTIONS)
    file = write(tmp_path / "answers.jsonl", [{**row, "prediction": "red"} for row in QUESTIONS])
    assert evaluate(file, "--reference", truth, "--metric", "exact_match") == 1
    assert "answers.jsonl, row 1: found no answer under 'text'" in capsys.readouterr().err


def test_a_part_is_scored_when_that_is_asked(tmp_path):
    truth = write(tmp_path / "test.jsonl", [*QUESTIONS, QUESTIONS[0]])
    assert evaluate(answers(tmp_path), "--reference", truth, "--metric", "exact_match", "--partial") == 0


def test_an_answer_that_is_an_error_is_wrong(tmp_path, capsys):
    file = tmp_path / "answers.jsonl"
    write(file, [{**QUESTIONS[0], "text": "circle"}, {**QUESTIONS[1], "text": "", "error": "too long"}])
    assert evaluate(file, "--reference", file, "--metric", "exact_match") == 0
    found = capsys.readouterr()
    assert "50.00" in found.out
    assert "1 of the answers are errors, and count as wrong" in found.err


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"answers": [{"answer": "yes"}, {"answer": "no"}]}, (("yes", "no"), {})),  # VQA v2's annotations
        ({"answers": "['4 m', '4']"}, (("4 m", "4"), {})),  # a TSV of VLMEvalKit's
        ({"label": "no"}, (("no",), {})),  # POPE
        ({"answer": 1, "choices": ["x", "y"]}, (("B",), {"A": "x", "B": "y"})),  # ScienceQA
        ({"answer": "B", "A": "x", "B": "y"}, (("B",), {"A": "x", "B": "y"})),
        ({"answer": 0}, (("0",), {})),
        ({"answer": True}, (("yes",), {})),
    ],
)
def test_references_of_benchmarks_are_read(row, expected):
    found = reference_of(row)
    assert (found.answers, dict(found.options)) == expected


def test_json_lists_and_tables_are_read(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"info": {}, "annotations": [{"question_id": 1}]}))
    (tmp_path / "b.tsv").write_text('index\tquestion\tA\n7\t"two\tcells"\t\n')
    assert read_rows(tmp_path / "a.json") == [{"question_id": 1}]
    assert read_rows(tmp_path / "b.tsv") == [{"index": "7", "question": "two\tcells"}]
    (tmp_path / "c.jsonl").write_text('{"a": 1}\n[1]\n')
    with pytest.raises(DataError, match=r"c\.jsonl, row 2, is \[1\]"):
        read_rows(tmp_path / "c.jsonl")
    (tmp_path / "d.tsv").write_bytes("index\tanswer\n7\t是\n".encode("gbk"))
    with pytest.raises(DataError, match=r"d\.tsv is no \.tsv file in UTF-8"):
        read_rows(tmp_path / "d.tsv")


def test_two_models_are_compared_with_what_makes_them_differ(tmp_path, capsys):
    for name, texts in (("a.jsonl", TEXTS), ("b.jsonl", ["circle", "red", "triangle"])):
        words = ["--metric", "exact_match", "--output", tmp_path / name[0]]
        file = answers(tmp_path, texts=texts, name=name)
        assert evaluate(file, "--reference", file, *words) == 0
    for name in "ab":
        path = tmp_path / name / "results.json"
        result = json.loads(path.read_text())
        entry = result["benchmarks"].pop(f"neva/{name}.exact_match")
        entry["versions"]["transformers"] = {"a": "4.57.6", "b": "5.23.0"}[name]
        result["benchmarks"]["neva/test"] = entry
        path.write_text(json.dumps(result))
    capsys.readouterr()
    assert evaluate("compare", tmp_path / "a", tmp_path / "b/results.json") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[4].split() == ["neva/test", "accuracy", "66.67", "100.00", "+33.33"]
    assert lines[-1] == "neva/test: not the same transformers: 4.57.6 and 5.23.0"


def test_a_local_file_says_how_the_kit_scores_it(tmp_path):
    picture = {"image": base64.b64encode(bytes(99)).decode()}
    files = {
        "letters": [{**picture, "question": "?", "answer": "y", "options": ["x", "y"]}],
        "POPE": [{**picture, "question": "?", "answer": "YES"}],
        "words": [{**picture, "question": "?", "answer": "red"}],
        "ten": [{**picture, "question": "?", "answers": ["red"] * 10}],
    }
    found = {
        name: read_local(write(tmp_path / f"{name}.jsonl", rows), None, None, "vlmevalkit")
        for name, rows in files.items()
    }
    assert {name: (data.metric, kit_name(data), kit_class(data)) for name, data in found.items()} == {
        "letters": ("multiple_choice", "neva_letters", None),
        "POPE": ("yes_no", "neva_pope", "ImageYORNDataset"),  # not the figures that the kit has for POPE
        "words": ("exact_match", "neva_words_GQA", "ImageVQADataset"),
        "ten": ("vqa", "neva_ten_TextVQA", "ImageVQADataset"),
    }
    write_tsv(found["POPE"], tmp_path)
    assert read_rows(tmp_path / "neva_pope.tsv")[0]["answer"] == "Yes"
    write_tsv(found["letters"], tmp_path)
    assert read_rows(tmp_path / "neva_letters.tsv") == [
        {"index": "0", "question": "?", **picture, "A": "x", "B": "y", "answer": "B"}
    ]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ([], "either a file of answers or --kit"),
        (["a.jsonl", "--kit", "vlmevalkit"], "either a file of answers or --kit"),
        (["a.jsonl"], "--reference FILE and --metric, one of"),
        (["a.jsonl", "--metric", "bleu", "--reference", "b"], "'bleu' is not a metric"),
        (["--kit", "vlmevalkit"], "--kit wants --model and --data"),
        (
            ["--kit", "lm-eval"],
            "'lm-eval' is not a kit for evaluation that neva knows; expected one of lmms-eval",
        ),
        (["--kit", "vlmevalkit", "--model", "m", "--data", "d", "--nproc", "0"], "expected 1 or more"),
        (["--kit", "vlmevalkit", "--model", "m", "--data", "d", "--base-url", "u"], "pass --output"),
        (["--kit", "vlmevalkit", "--model", "m", "--data", "d"], "in no package registry"),
        (["a.jsonl", "--reference", "b", "--metric", "vqa", "--", "--reuse"], "only a kit takes"),
        (["--kit", "lmms-eval", "--model", "m", "--data", "d", "--kit-path", "p"], "is a package"),
        (["--kit", "lmms-eval", "--model", "m", "--data", "d", "--judge", "j"], "environment variables"),
        (["--kit", "lmms-eval", "--model", "m", "--data", "d", "--plain-prompts"], "expected files"),
        (
            ["--kit", "lmms-eval", "--model", "m", "--data", "d", "--kit-python", "no/python"],
            "make lmms-eval builds its environment",
        ),
        (
            [
                "--kit",
                "lmms-eval",
                "--model",
                "m",
                "--data",
                "d",
                "--nproc",
                "99",
                "--kit-python",
                sys.executable,
            ],
            "--nproc 99: lmms-eval shares questions over GPUs",
        ),
    ],
)
def test_flags_that_do_not_go_together_are_refused(capsys, words, problem):
    assert evaluate(*words) == ConfigError.exit_code
    assert problem in capsys.readouterr().err
