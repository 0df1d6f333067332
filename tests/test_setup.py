"""`scripts/setup.sh`, with a stand-in for the interpreter: what goes wrong is said in one sentence."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

STAND_IN = """\
#!/bin/bash
case "$*" in
    *version_info*) exit {unsupported} ;;
    *python_version*) echo {version} ;;
    *"import venv"*) exit {without_venv} ;;
    "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
    *"pip install"*) cat "{output}"; exit 1 ;;
esac
"""


@pytest.fixture
def setup(tmp_path: Path):  # type: ignore[no-untyped-def]
    """Runs the script of a copied tree and returns what it says on stderr."""
    (tmp_path / "tree" / "scripts").mkdir(parents=True)
    shutil.copy(ROOT / "scripts" / "setup.sh", tmp_path / "tree" / "scripts")

    def run(pip_says: str = "", unsupported: int = 0, without_venv: int = 0) -> str:
        (tmp_path / "output").write_text(pip_says)
        python = tmp_path / "python"
        facts = {"unsupported": unsupported, "version": "3.9.2" if unsupported else "3.11.4"}
        python.write_text(STAND_IN.format(without_venv=without_venv, output=tmp_path / "output", **facts))
        python.chmod(0o755)
        result = subprocess.run(
            ["bash", "scripts/setup.sh", ".venv"],
            cwd=tmp_path / "tree",
            env={**os.environ, "PYTHON": str(python)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 1
        return result.stderr.replace(str(tmp_path), "")

    return run


def test_an_unsupported_python_is_named_with_its_version(setup) -> None:  # type: ignore[no-untyped-def]
    assert setup(unsupported=1) == (
        "make setup: neva needs Python 3.10 to 3.13, found /python (3.9.2): install one, or name it with "
        "'make setup PYTHON=/path/to/python3.11'.\n"
    )


def test_a_python_without_venv_names_the_package(setup) -> None:  # type: ignore[no-untyped-def]
    assert "apt install python3-venv" in setup(without_venv=1)


@pytest.mark.parametrize(
    ("pip_says", "sentence"),
    [
        ("error: command 'x86_64-linux-gnu-g++' failed: No such file or directory", "no compiler is there"),
        ("error: [Errno 2] No such file or directory: 'gcc'", "no compiler is there"),
        ("NewConnectionError('Failed to establish a new connection')", "index could not be reached"),
        ("NameResolutionError: Temporary failure in name resolution", "index could not be reached"),
        ("OSError: [Errno 28] No space left on device", "is full"),
    ],
)
def test_what_pip_cannot_do_is_one_sentence(setup, pip_says: str, sentence: str) -> None:  # type: ignore[no-untyped-def]
    said = setup(pip_says)
    assert sentence in said
    assert said.startswith("make setup: ") and said.count("\n") == 1
    assert "(log: .venv/install.log)" in said


def test_any_other_failure_shows_its_last_lines(setup) -> None:  # type: ignore[no-untyped-def]
    said = setup("first\nERROR: something else")
    assert said.endswith("make setup: pip failed, its last lines are above (log: .venv/install.log).\n")
    assert "ERROR: something else" in said
