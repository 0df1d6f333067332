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
