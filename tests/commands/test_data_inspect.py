"""`neva data inspect`: on a terminal, as a page, and never over what is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from neva import cli
from tests.commands.test_dry_run import ready  # noqa: F401


def test_samples_are_printed_or_written_as_a_page_that_is_not_overwritten(
    ready: list[str],  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["data", "inspect", *ready, "--index", "0,129", "--lengths", "130"]) == 0
    out = capsys.readouterr().out
    assert "sample 0: record 0, id '0'" in out and "sample 129: record 129" in out
    assert "⟦ red" in out or "⟦red" in out and "\x1b" not in out
    assert "130 of 130 records: " in out and "cyclic " in out and "modality " in out and "single" not in out

    written = ["data", "inspect", *ready, "--html", "page.html", "--plots", "plots"]
    assert cli.main(written) == 0
    page = (tmp_path / "page.html").read_text()
    assert page.count("<h2>") == 3 and page.count("data:image/png") >= 3 * 2 + 2
    for name in ("lengths", "padding"):
        assert (tmp_path / "plots" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "page.html").write_text("mine")
    capsys.readouterr()
    assert cli.main(["data", "inspect", *ready, "--html", "page.html"]) == 1
    assert "page.html exists" in capsys.readouterr().err and (tmp_path / "page.html").read_text() == "mine"
    assert cli.main([*written, "--force", "--count", "1"]) == 0
    assert (tmp_path / "page.html").read_text().count("<h2>") == 1


def test_a_sample_that_is_not_there_is_one_sentence(
    ready: list[str],  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["data", "inspect", *ready, "--index", "130"]) == 2
    assert "--index 130: the data set has samples 0 to 129" in capsys.readouterr().err
