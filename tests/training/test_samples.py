"""Prompts answered while a run trains: the answers of `neva infer`, scored, logged, and no trace in the training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import wandb as weights_and_biases
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from neva.config.load import load
from neva.errors import ConfigError, DataError
from neva.inference.jsonl import run as infer
from neva.training.callbacks import read_metrics
from tests.training.test_run import run, weights

TRAINED = ("loss", "lr", "grad_norm", "consumed_samples")
QUESTION = "<image>\nwhat colour is this?"
PROMPTS = [
    {"prompt": QUESTION, "image": "0.png", "answer": "red"},
    {"prompt": "is it?", "answer": "no"},
    {"prompt": QUESTION, "image": "1.png", "answer": "green"},
    {"prompt": QUESTION, "image": "torn.png", "answer": "red"},
    {"prompt": QUESTION, "image": "2.png", "answer": "blue"},
]


@pytest.fixture
def asking(tmp_path: Path, colours: list[str]) -> list[str]:
    """Overrides that ask four of five prompts, one of them with a torn image."""
    images = Path(next(word for word in colours if "image_folder=" in word).partition("=")[2])
    (images / "torn.png").write_bytes((images / "0.png").read_bytes()[:50])
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in PROMPTS))
    settings = ["every_n_steps=20", "num_prompts=4", "tokens_to_generate=8", "metric=exact_match"]
    return [f"trainer.samples.{word}" for word in (f"prompt_file={file}", *settings)]


def test_answers_are_those_of_infer_scored_and_logged_and_leave_no_trace(
    tmp_path: Path, colours: list[str], asking: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    learning = [*colours, "model.optim.lr=5e-3", "model.global_batch_size=10"]
    plain = run(tmp_path / "plain", learning, steps=50)
    wandb = ["exp_manager.create_wandb_logger=true", "exp_manager.wandb_logger_kwargs.project=p"]
    asked = run(tmp_path / "asked", [*learning, *asking, *wandb], steps=50)
    assert [[row[name] for name in TRAINED] for row in read_metrics(asked)] == [
        [row[name] for name in TRAINED] for row in read_metrics(plain)
    ]
    before, after = weights(plain), weights(asked)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)

    rows = {
        int(file.stem.partition("-")[2]): [json.loads(line) for line in file.read_text().splitlines()]
        for file in sorted((asked / "samples").iterdir())
    }
    assert list(rows) == [20, 40, 50] and all(len(said) == 4 for said in rows.values())
    images = next(word for word in colours if "image_folder=" in word).partition("=")[2]
    settings = [f"neva_model_file={next((asked / 'checkpoints').glob('*.nemo'))}"]
    settings += [f"prompt_file={tmp_path / 'prompts.jsonl'}", f"inference.images_base_path={images}"]
    settings += [f"output_file={tmp_path / 'results.jsonl'}", "inference.tokens_to_generate=8"]
    with pytest.raises(DataError, match="1 of 5 prompts could not be asked"):
        infer(load("quickstart_inference", settings))
    said = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()][:4]
    assert [row["text"] for row in rows[50]] == [row["text"] for row in said]
    assert "cannot be decoded" in rows[50][3]["error"]

    right = {
        step: [row["text"] == row["answer"] for row in said] for step, said in rows.items()
    }  # one word each
    assert 0 < sum(right[50]) < 4, "else the score says nothing"
    scores = {step: 25.0 * sum(found) for step, found in right.items()}
    measured = {
        row["step"]: row["samples_accuracy"] for row in read_metrics(asked) if "samples_accuracy" in row
    }
    assert measured == scores and [row["score"] for row in rows[50]] == right[50]

    events = EventAccumulator(str(asked / "version_0"), {"tensors": 0, "images": 0}).Reload()
    assert {event.step + 1: event.value for event in events.Scalars("samples_accuracy")} == scores
    text = events.Tensors("samples/001/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert f"**answer** {rows[50][0]['text']}" in text and "&lt;image&gt;" in text
    shown = [event.step for event in events.Images("samples/003")]
    assert shown == [20, 40, 50] and "samples/004" not in events.Tags()["images"]
    weights_and_biases.finish()
    tables = list((tmp_path / "asked").rglob("media/table/samples*.json"))
    assert len(tables) == 3 and len(json.loads(tables[0].read_text())["data"]) == 4
    assert len(list((tmp_path / "asked").rglob("media/images/sample images*.png"))) == 3 * 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "trainer.samples.metric=bleu",
            "trainer.samples.metric=bleu is no metric; expected one of .*exact_match",
        ),
        ("model.context_parallel_size=2", "trainer.samples.prompt_file with model.context_parallel_size=2"),
        ("trainer.samples.prompt_file=no.jsonl", "trainer.samples.prompt_file: no file at no.jsonl"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    colours: list[str], asking: list[str], override: str, message: str
) -> None:
    from neva.config.paths import path_problems

    with pytest.raises(ConfigError, match=message):
        cfg = load("quickstart_finetune", [*colours, *asking, "trainer.devices=2", override])
        raise ConfigError("\n".join(path_problems(cfg)))


def test_a_prompt_without_an_answer_is_refused_before_the_first_step(
    tmp_path: Path, colours: list[str], asking: list[str]
) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "is it?"}\n')
    with pytest.raises(DataError, match=r"metric=exact_match: .*prompts.jsonl, prompt 1: it has no answer"):
        run(tmp_path, [*colours, *asking], steps=2)
