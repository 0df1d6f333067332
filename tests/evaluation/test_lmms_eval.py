"""A model through lmms-eval, from a `.nemo` to results: by a stand-in, and by the kit that `make lmms-eval` built."""

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import transformers

from neva import cli
from neva.evaluation.kits import lmms_eval_task
from neva.metrics.metric import Reference
from neva.registry import METRICS
from tests.conftest import random_image
from tests.evaluation.kits import NEW_TOKENS, asked, entries, generated

STAND_IN = Path(__file__).parent / "lmms_eval_stand_in"
REAL = Path(__file__).parents[2] / ".venv-lmms-eval/bin/python"
INSTRUCTION = "\nAnswer the question using a single word or phrase."
LETTERS = "\nA. x\nB. y\nAnswer with the option's letter from the given choices directly."
needs_the_kit = pytest.mark.skipif(not REAL.exists(), reason="make lmms-eval has not been called")


def evaluate(python, folder, *data, model="model.nemo", output="out", more=()):
    words = ["evaluate", "--kit", "lmms-eval", "--kit-python", python]
    words += ["--model", folder / model, "--output", folder / output, "--max-tokens", NEW_TOKENS]
    return cli.main([*map(str, words), "--data", *map(str, data), *map(str, more)])


def samples(folder, name):
    """What the kit kept of each question in its newest run."""
    found = (folder / "out/lmms-eval/details/model").glob(f"*_samples_{name}.jsonl")
    newest = max(found, key=lambda path: path.stat().st_mtime)
    return [json.loads(line)["filtered_resps"].strip() for line in newest.read_text().splitlines()]


def first_token(folder, text):
    """The id of the token that a text begins with."""
    vocabulary = json.loads((folder / "out/hf/tokenizer.json").read_text())["model"]["vocab"]
    return vocabulary[max((token for token in vocabulary if text.startswith(token)), key=len)]


@pytest.fixture(scope="module", params=["stand-in", pytest.param("lmms-eval", marks=needs_the_kit)])
def python(request):
    """The Python that has the kit."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "stand-in":
            patch.setenv("PYTHONPATH", str(STAND_IN))
        else:
            patch.delenv("PYTHONPATH", raising=False)
        yield sys.executable if request.param == "stand-in" else REAL


@pytest.fixture(scope="module")
def answered(folder, python):
    """Two files of questions asked and scored, and a third whose picture is none."""
    letters = asked(folder, ["A"] * 3, "letters.jsonl", options=["x", "y"])
    (folder / "bad.png").write_text("no picture")
    (folder / "bad.tsv").write_text(
        f"index\tquestion\tanswer\timage_path\n1\tWhat?\tred\t{folder / 'bad.png'}\n"
    )
    files = [folder / "bad.tsv", asked(folder, ["?"] * 3), letters]
    assert evaluate(python, folder, *files, more=["--force"]) == 1
    return entries(folder)


def test_a_nemo_is_exported_asked_and_scored(folder, answered):
    assert samples(folder, "neva_mine") == generated(folder, INSTRUCTION)
    assert samples(folder, "neva_letters") == generated(folder, LETTERS)
    found = answered["lmms-eval/mine"]
    assert (found["metric"], found["score"], found["questions"]) == ("exact_match", 0, 3)
    assert found["first_prompt"].endswith(f"<image>\nWhat is 0?{INSTRUCTION} ASSISTANT:")
    assert found["versions"]["transformers"] == transformers.__version__
    assert found["versions"]["lmms-eval"] == "0.7.3"
    assert answered["lmms-eval/letters"]["metric"] == "accuracy"


def test_a_file_that_fails_fails_no_other(answered):
    assert answered["lmms-eval/bad"]["problem"].startswith("UnidentifiedImageError: cannot identify image")
    assert answered["lmms-eval/mine"]["problem"] is None


@pytest.mark.usefixtures("answered")
@pytest.mark.parametrize("python", ["stand-in"], indirect=True)
def test_questions_are_asked_as_they_stand_and_answers_end_where_the_export_says(folder, python, capsys):
    plain = generated(folder, "")
    assert plain != generated(folder, INSTRUCTION)
    settings = folder / "out/hf/generation_config.json"
    before = settings.read_text()
    ends = [json.loads(before)["eos_token_id"], first_token(folder, plain[0])]
    settings.write_text(json.dumps({**json.loads(before), "eos_token_id": ends}))
    ended = generated(folder, "")
    file = asked(folder, [*ended[:2], "?"])
    assert evaluate(python, folder, file, more=["--plain-prompts", "--force"]) == 0
    settings.write_text(before)
    assert samples(folder, "neva_mine") == ended != plain
    found = entries(folder)["lmms-eval/mine"]
    assert (found["score"], found["prompts"]) == (pytest.approx(2 / 3), "the question alone")
    assert f"transformers {transformers.__version__}" in capsys.readouterr().out


@pytest.mark.parametrize("python", ["stand-in"], indirect=True)
def test_the_kits_last_lines_say_why_it_ended(tmp_path, python, capsys):
    more = ["--base-url", "http://127.0.0.1:8000/v1", "--", "--no-such-flag"]
    assert evaluate(python, tmp_path, "textvqa", model="m", more=more) == 1
    assert "unrecognized arguments: --no-such-flag" in (error := capsys.readouterr().err)
    assert "the kit ended with exit code 2; its output is in" in error


@pytest.mark.parametrize("python", ["stand-in"], indirect=True)
def test_the_kits_own_benchmarks_are_results_and_tasks_of_groups(tmp_path, python, capsys):
    more = ["--base-url", "http://127.0.0.1:8000/v1"]
    assert evaluate(python, tmp_path, "textvqa", "seedbench", model="m", more=more) == 0
    found = entries(tmp_path)
    assert {name: (row["score"], row["questions"], row["problem"]) for name, row in found.items()} == {
        "lmms-eval/textvqa_val": (0.5, 4, None),
        "lmms-eval/textvqa_test": (None, 4, "no score: submission"),  # no failure
        "lmms-eval/seedbench": (0.25, 4, None),
    }
    assert found["lmms-eval/seedbench"]["scores"] == {"seedbench": {"acc": 0.25}, "images": {"acc": 0.25}}
    assert "0.5000" in capsys.readouterr().out


class Server(BaseHTTPRequestHandler):
    """Answers `red`, but to the second question."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        (_, text) = body["messages"][0]["content"]
        is_fine = not text["text"].startswith("What is 1?")
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "red"}}
        answer = {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
        content = json.dumps(answer).encode()
        self.send_response(200 if is_fine else 400)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format, *arguments):
        pass


@needs_the_kit
def test_a_server_is_asked_and_what_it_does_not_answer_fails_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("PYTHONPATH", raising=False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for number in range(2):
        random_image(40, 30, seed=number).save(tmp_path / f"{number}.png")
    file = asked(tmp_path, ["red", "red", "blue"])
    address = f"http://127.0.0.1:{server.server_port}/v1"
    more = ["--base-url", address, "--", "--model_args", "max_retries=1"]
    assert evaluate(REAL, tmp_path, file, model="m", more=more) == 1
    server.shutdown()
    server.server_close()
    (found,) = entries(tmp_path).values()
    assert (found["score"], found["unanswered"]) == (pytest.approx(1 / 3), 1)
    assert "1 of 3 questions have no answer" in capsys.readouterr().out


SCORED = {
    "exact_match": [("Red", ("red",)), ("a red", ("red",)), ("blue", ("red", "blue"))],
    "vqa": [("Red", ("red",) * 2 + ("blue",) * 8), ("2", ("two",) * 10), ("no", ("yes",) * 10)],
    "relaxed": [("1.04", ("1",)), ("1.06", ("1",)), ("Paris", ("paris",)), ("12%", ("12%",))],
    "anls": [("Paris", ("paris",)), ("Pariz", ("paris",)), ("x", ("paris",)), ("b", ("a", "b"))],
    "multiple_choice": [("B", ("B",)), ("B.", ("B",)), ("The answer is A", ("A",)), ("A", ("B",))],
    "yes_no": [("Yes", ("Yes",)), ("no", ("Yes",)), ("no", ("No",))],
}
"""Answers with what is right, on which the kit's ways to score and neva's agree."""

ASK = """
import json, sys
sys.path.insert(0, sys.argv[1])
import lmms_eval_task as task
sys.path.pop(0)
rows = json.load(sys.stdin)
print(json.dumps([getattr(task, metric)(doc, [answer]) for metric, answer, doc in rows], default=float))
"""


@needs_the_kit
def test_the_kits_functions_score_as_neva_does(tmp_path, monkeypatch):
    rows, expected = [], []
    options = {"A": "x", "B": "y"}
    for metric, pairs in SCORED.items():
        for answer, truths in pairs:
            doc = {"index": "0", "letters": list(options), "answers": list(truths)}
            rows.append((metric, answer, doc))
            reference = Reference(truths, options if metric == "multiple_choice" else {})
            expected.append(METRICS[metric].judge(answer, reference).score)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    words = [REAL, "-c", ASK, str(Path(lmms_eval_task.__file__).parent)]
    ran = subprocess.run(words, input=json.dumps(rows), capture_output=True, text=True, check=True)
    found = [next(iter(row.values())) for row in json.loads(ran.stdout)]
    scores = [row["score"] if isinstance(row, dict) else row for row in found]
    assert scores == pytest.approx(expected)
