"""Kills runs at random and has them go on in another layout: what was consumed is what an unbroken run consumes.

`python -m tests.distributed.kill_drill --kills 200 --seed 7` (`make kill-drill ARGS=…`) does what the test of this name
does, longer.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from neva.data.ledger import LEDGER, LedgerStep, read_ledger
from neva.data.ledger_proof import prove
from neva.errors import DataError
from neva.training.callbacks import read_metrics
from tests.distributed.rank_process import Ranks

STEPS, BATCH, LAST_KILL = 20, 2, 14
"""Two epochs of 20 records and more of packs, 2 a step; no kill waits for a step behind the last of the three."""


@dataclass(frozen=True)
class Layout:
    """Processes, and how they share the model."""

    name: str
    size: int
    overrides: tuple[str, ...] = ()


LAYOUTS = (
    Layout("alone", 1),
    Layout("alone, larger micro batches", 1, ("model.micro_batch_size=2",)),
    Layout("alone, workers", 1, ("model.data.num_workers=2",)),
    Layout("data parallel", 2),
    Layout(
        "distributed optimizer, a worker",
        2,
        ("model.optim.name=distributed_fused_adam", "model.data.num_workers=1"),
    ),
    Layout("tensor parallel", 2, ("model.tensor_model_parallel_size=2", "model.sequence_parallel=true")),
    Layout("pipeline", 2, ("model.pipeline_model_parallel_size=2",)),
    Layout("context parallel", 2, ("model.context_parallel_size=2",)),
    Layout("FSDP", 2, ("model.fsdp=true",)),
)  # fmt: skip

DATA: dict[str, tuple[str, ...]] = {
    "cyclic": (),
    "modality, mixture": ("model.data.dataloader_type=modality", "model.mega_batch_mult=2"),
    "packed": ("model.data.packed_sequence=true", "model.encoder_seq_length=64"),
    "packed, mixture": ("model.data.packed_sequence=true", "model.encoder_seq_length=64"),
}
"""Kinds of data; a mixture has two sources, of which the second comes one and a half times."""


def data_of(colours: Sequence[str], kind: str, folder: Path) -> list[str]:
    """Returns the overrides of a kind of data, written to `folder`: what `colours` has, several times over."""
    source = Path(next(word for word in colours if "data_path=" in word).partition("=")[2])
    records = json.loads(source.read_text())
    parts = {"one": records * 2} if "mixture" not in kind else {"one": records, "two": records[:8]}
    named = {name: [{**r, "id": f"{name}{n}"} for n, r in enumerate(part)] for name, part in parts.items()}
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in named.items():
        (folder / f"{name}.json").write_text(json.dumps(part))
    kept = [word for word in colours if "data_path=" not in word]
    path = f"{folder}/one.json"
    if len(parts) > 1:
        weighted = zip(parts, (1, 1.5), strict=True)
        entries = (
            f"{{path:{folder}/{name}.json,image_folder:{source.parent},weight:{weight}}}"
            for name, weight in weighted
        )
        path = f"[{','.join(entries)}]"
    return [*kept, f"model.data.data_path={path}", *DATA[kind]]


LONGEST_S = 300
"""That a run may take for a few steps."""

ROUND = 8
"""Kills of one run."""

FIXED = (
    f"model.global_batch_size={BATCH}",
    "model.micro_batch_size=1",
    "model.drop_last=false",
    "model.data.pad_to_multiple_of=4",
    f"trainer.max_steps={STEPS}",
    "exp_manager.name=run",
    "exp_manager.create_tensorboard_logger=false",
    "exp_manager.checkpoint_callback_params.every_n_train_steps=3",
    "exp_manager.checkpoint_callback_params.save_top_k=1",
    "exp_manager.checkpoint_callback_params.save_nemo_on_train_end=false",
)


def consumed(run_dir: Path) -> list[LedgerStep]:
    """Returns the steps of a run's ledger, as far as there is one."""
    try:
        return [entry for entry in read_ledger(run_dir) if isinstance(entry, LedgerStep)]
    except DataError:
        return []


def beginning(folder: Path, colours: Sequence[str]) -> str:
    """Returns the override under which every layout begins with the same weights: those of a run of one step."""
    words = ["trainer.max_steps=1", f"exp_manager.exp_dir={folder}", "exp_manager.name=run"]
    Ranks([*colours, *words], 1, folder / "log").finish()
    return f"model.restore_from_path={folder}/run/checkpoints/run.nemo"


def unbroken(folder: Path, overrides: Sequence[str]) -> Path:
    """Runs to the end on one process and returns the run folder."""
    Ranks([*overrides, *FIXED, f"exp_manager.exp_dir={folder}"], 1, folder / "log").finish()
    return folder / "run"


def drill(
    folder: Path, overrides: Sequence[str], kills: int, chance: random.Random, tell: Callable[[str], None]
) -> Path:
    """Runs to the end, killed so many times on the way, each time going on in another layout.

    It is killed while it starts, when it has just begun again, or some steps on: computing, saving, between the two.
    """
    run_dir, before = folder / "run", None
    for number in range(kills + 1):
        layout = chance.choice([layout for layout in LAYOUTS if layout is not before])
        before = layout
        words = [*overrides, *FIXED, f"exp_manager.exp_dir={folder}", *layout.overrides]
        steps, starts = len(consumed(run_dir)), _starts(run_dir)
        ranks = Ranks(words, layout.size, folder / "log")
        if number < kills:
            if chance.random() < 0.85:
                _wait(ranks, run_dir, starts, min(steps + chance.randint(-1, 3), LAST_KILL))
                time.sleep(chance.uniform(0, 0.1))
            else:
                time.sleep(chance.uniform(0.1, 2))
            ranks.kill()
            tell(f"{layout.name}: killed behind step {len(consumed(run_dir))}")
    ranks.finish()
    tell(f"{layout.name}: to the end")
    return run_dir


def _wait(ranks: Ranks, run_dir: Path, starts: int, steps: int) -> None:
    """Waits until the run has begun, and has so many steps behind it."""
    deadline = time.monotonic() + LONGEST_S
    while _starts(run_dir) == starts or len(consumed(run_dir)) < steps:
        assert ranks.is_alive and time.monotonic() < deadline, ranks.log.read_text()[-4000:]
        time.sleep(0.01)


def _starts(run_dir: Path) -> tuple[int, int]:
    """Returns what is another when a run has begun to write its ledger."""
    path = run_dir / LEDGER
    return (path.stat().st_mtime_ns, path.stat().st_size) if path.exists() else (0, 0)


def assert_same(run_dir: Path, expected: Path) -> None:
    """Compares samples step by step and losses, and has the ledger proven."""
    assert consumed(run_dir) == consumed(expected)
    assert [step.step for step in consumed(run_dir)] == [*range(1, STEPS + 1)]
    findings = [*prove(read_ledger(run_dir))]
    assert not any(finding.is_wrong for finding in findings), findings
    losses = {row["step"]: row["loss"] for row in read_metrics(expected)}
    for row in read_metrics(run_dir):
        # float32 rounding, carried through twenty steps of several layouts
        assert abs(row["loss"] - losses[row["step"]]) < 1e-3, (row["step"], row["loss"], losses[row["step"]])


def main() -> None:
    """Drills until all kills are done."""
    from tests.training.conftest import colours_in

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    chance = random.Random(options.seed)

    def tell(text: str) -> None:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()

    with tempfile.TemporaryDirectory() as temporary:
        base = Path(temporary)
        (base / "colours").mkdir()
        colours = colours_in(base / "colours")
        (base / "beginning").mkdir()
        begin = beginning(base / "beginning", colours)
        references: dict[str, Path] = {}
        for number in range(-(-options.kills // ROUND)):
            kind = [*DATA][number % len(DATA)]
            tell(kind)
            overrides = [*data_of(colours, kind, base / f"data-{number % len(DATA)}"), begin]
            for name in (f"unbroken-{kind}", f"drill-{number}"):
                (base / name).mkdir(exist_ok=True)
            if kind not in references:
                references[kind] = unbroken(base / f"unbroken-{kind}", overrides)
            run_dir = drill(base / f"drill-{number}", overrides, ROUND, chance, tell)
            assert_same(run_dir, references[kind])
    tell("every batch is that of the unbroken run, and every sample came once an epoch")


if __name__ == "__main__":
    main()
