"""Where a run begins: what may have changed since its checkpoint, and what it takes of another run's."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from neva.config.load import load
from neva.config.resumed import changes
from neva.data.ledger import LedgerStep, read_ledger
from neva.errors import ConfigError
from neva.training.callbacks import read_metrics
from tests.training.test_run import run


@pytest.fixture
def told() -> Iterator[list[str]]:
    """What neva logs about where a run begins."""
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("neva.training.start")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield messages
    logger.removeHandler(handler)
    logger.setLevel(before)


def test_what_changed_is_listed_and_what_is_fixed_is_refused_with_both_values(
    tmp_path: Path, colours: list[str], told: list[str]
) -> None:
    run(tmp_path, colours, steps=2)
    with pytest.raises(ConfigError) as refused:
        run(tmp_path, [*colours, "model.ffn_hidden_size=64", "model.data.conv_template=plain"], steps=3)
    lines = str(refused.value).splitlines()
    assert lines == [
        "model.ffn_hidden_size was 48 in the checkpoint and is 64: the weights of the checkpoint are those of that "
        "form; give the old value, or begin a run of its own",
        "model.data.conv_template was v1 in the checkpoint and is plain: the model was taught to read its samples so; "
        "give the old value, or begin a run of its own with model.resume_from_checkpoint and "
        "model.load_data_state=false",
    ]
    with pytest.raises(
        ConfigError, match=r"model\.seed was \d+ in the checkpoint and is 7: .*on_change=new_epoch"
    ):
        run(tmp_path, [*colours, "model.seed=7"], steps=3)

    source = Path(next(word for word in colours if "tokenizer.type" in word).partition("=")[2])
    moved = Path(shutil.copytree(source, tmp_path / "tokenizer"))
    content = json.loads((moved / "tokenizer.json").read_text())
    words = content["model"]["vocab"]
    words["red"], words["blue"] = words["blue"], words["red"]
    (moved / "tokenizer.json").write_text(json.dumps(content))
    other = [*colours, f"model.tokenizer.type={moved}"]
    with pytest.raises(ConfigError, match=f"the tokenizer was {source} in the checkpoint and is {moved}"):
        run(tmp_path, other, steps=3)
    shutil.copytree(source, moved, dirs_exist_ok=True)
    told.clear()
    run(tmp_path, [*other, "model.optim.lr=5e-4", "model.seed=7", "model.data.on_change=new_epoch"], steps=3)
    assert [line.removeprefix("changed since the checkpoint: ") for line in told] == [
        "trainer.max_steps: 2 → 3",
        "model.seed: 1234 → 7",
        f"model.tokenizer.type: {source} → {moved}",
        "model.data.on_change: fail → new_epoch",
        f"model.optim.lr: {load('quickstart_finetune', []).model.optim.lr} → 0.0005",
    ]


def test_keys_of_a_newer_neva_and_defaults_that_are_written_out_are_no_changes() -> None:
    now = load("quickstart_finetune", ["+model.image_attention=causal"])
    before = load("quickstart_finetune", [])
    assert changes(before, now) == []
    OmegaConf.set_struct(before, False)
    del before.model["load_optim"]
    assert changes(before, now) == []
    now.model.image_attention = "bidirectional"
    (change,) = changes(before, now)
    assert (str(change), change.fixed) == ("model.image_attention: - → bidirectional", "reading")


def losses(run_dir: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(run_dir)]


def test_a_run_takes_of_a_checkpoint_what_its_keys_say(
    tmp_path: Path, colours: list[str], told: list[str]
) -> None:
    # 16 bits: the optimizer has main weights of its own, which have to follow
    settings = [*colours, "trainer.precision=bf16", "model.optim.lr=1e-2"]
    first = run(tmp_path, settings, steps=3, name="first")
    (last,) = (first / "checkpoints").glob("*-last")
    own = tmp_path / "own"
    shutil.copytree(last, own / "run" / "checkpoints" / last.name)
    expected = losses(run(own, settings, steps=5))

    def start(name: str, *keys: str, steps: int = 5) -> Path:
        named = [*settings, f"model.resume_from_checkpoint={last}", *keys]
        return run(tmp_path, named, steps=steps, name=name)

    assert losses(start("whole")) == expected
    fresh = losses(start("fresh", "model.load_optim=false"))
    assert fresh[0] == expected[0] and fresh[1] != expected[1]
    again = start("again", "model.load_data_state=false", steps=2)
    assert [row["step"] for row in read_metrics(again)] == [1, 2]
    assert read_metrics(again)[-1]["consumed_samples"] == 8
    weights_alone = ("model.load_optim=false", "model.load_data_state=false")
    plain = start("plain", *weights_alone, steps=2)
    nemo = [*settings, f"model.restore_from_path={first}/checkpoints/first.nemo"]
    assert losses(plain) == losses(run(tmp_path, nemo, steps=2, name="nemo"))
    assert losses(plain)[0] == losses(again)[0] and losses(plain)[1] != losses(again)[1]

    # the same command again goes on with the run, not with its beginning
    told.clear()
    start("plain", *weights_alone, steps=4)
    assert told[0].startswith("the run goes on from its own checkpoint")
    steps = [entry.step for entry in read_ledger(plain) if isinstance(entry, LedgerStep)]
    assert steps == [row["step"] for row in read_metrics(plain)] == [1, 2, 3, 4]

    (of_plain,) = (plain / "checkpoints").glob("*-last")
    with pytest.raises(ConfigError, match="is of the run that is to begin: choose another exp_manager.name"):
        run(
            tmp_path,
            [*settings, f"model.resume_from_checkpoint={of_plain}", *weights_alone],
            steps=5,
            name="plain",
        )
    with pytest.raises(ConfigError, match="model.load_optim=false says what a run takes of"):
        load("quickstart_finetune", ["model.load_optim=false"])
