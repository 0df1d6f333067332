"""`--as-rank`, `--all-ranks`, `--world`: what they refuse, and a rank shown."""

from __future__ import annotations

import pytest

from neva import cli

SEVEN = ["train", "--config-name", "llava_7b_finetune"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--dry-run", "--as-rank", "16", "--world", "16"],
            "--as-rank 16: the ranks of 16 processes are 0 to 15",
        ),
        (
            ["--dry-run", "--as-rank", "0", "--world", "12"],
            "--world 12 is not a number of whole nodes",
        ),
        (["--as-rank", "0"], "give --dry-run with them"),
        (["--dry-run", "--world", "16"], "give --as-rank or --all-ranks with it"),
        (
            ["--dry-run", "--all-ranks", "trainer.precision=16"],
            "without memory with trainer.precision=16",
        ),
        (["--dry-run", "--as-rank", "0", "--world", "48"], "global_batch_size=128 cannot be divided"),
    ],
)
def test_what_cannot_be_shown_is_one_sentence(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*SEVEN, *words]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        [
            "llava_7b_finetune",
            "parallel=tp4_pp2",
            "--as-rank",
            "1037",
            "--world",
            "4096",
            "model.global_batch_size=4096",
        ],
        ["llava_7b_qlora", "--as-rank", "0", "--world", "1"],
    ],
    ids=["tp4-pp2", "qlora"],
)
def test_the_peak_of_a_rank_is_that_of_the_plan(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Counted from each tensor that a step makes, and from formulae, which leave small ones out."""
    assert cli.main(["train", "--dry-run", "--config-name", *words]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("peak of a step")]
    counted, planned = map(float, line.split()[-2:])
    assert counted == pytest.approx(planned, rel=0.04)
