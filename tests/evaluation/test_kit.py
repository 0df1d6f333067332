"""What kits have in common: a kit of one's own, and what a terminal shows while one runs."""

import json

from neva import cli
from neva.evaluation.kits.kit import progress

TOY = """
from neva.evaluation.kits import kit
from neva.evaluation.results import Entry, now


def evaluate(run):
    return [
        Entry(
            by="toy", benchmark=name, metric="length", score=len(name), scores={}, questions=1, unanswered=0,
            problem=None,
            prompts="none", first_prompt=None, versions={"toy": "1"}, files=None, finished=now(),
        )
        for name in run.data
    ]


kit.register_kit("Toy", (), lambda run: None, evaluate)
"""


def test_a_kit_of_ones_own_is_a_package_that_registers_it(tmp_path, monkeypatch, capsys):
    (tmp_path / "toy_kit.py").write_text(TOY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    words = ["evaluate", "--plugins", "toy_kit", "--kit", "toy", "--model", "m.nemo", "--data", "abc"]
    assert cli.main(words) == 0
    found = json.loads((tmp_path / "m.evaluation/results.json").read_text())["benchmarks"]
    assert found["toy/abc"]["score"] == 3
    assert "toy 1" in capsys.readouterr().out


def test_the_newest_bar_in_a_log_is_the_progress(tmp_path):
    log = tmp_path / "log"
    log.write_text("starting\n")
    assert progress(log) == ""
    bars = [f"Asking: {10 * part}%|██   | {part}/10 [00:0{part}<00:10, 1.00it/s]" for part in range(1, 8)]
    log.write_text("x" * 1000 + "\n" + "\r".join(bars) + "\rAsking: 80%|")
    assert progress(log) == bars[-1]
