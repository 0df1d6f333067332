"""The container recipes, read without a container engine: what they copy exists and is all that an install needs."""

import configparser
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE, APPTAINER = ROOT / "environments/Dockerfile", ROOT / "environments/recipe_latest.def"
DOCKER_WORDS = {"FROM", "ARG", "ENV", "COPY", "RUN", "WORKDIR", "ENTRYPOINT", "CMD"}
APPTAINER_SECTIONS = {"files", "post", "environment", "runscript", "test"}
INSTALLED_FROM = {"setup.cfg", "pyproject.toml", "README.md", "LICENSE", "conf", "neva", "scripts"}
SECRET = re.compile(r"token|secret|passw|api_?key|credential", re.IGNORECASE)


def instructions(path: Path) -> list[tuple[str, list[str]]]:
    """Word and arguments of each instruction of a Dockerfile."""
    text = re.sub(r"\\\n", " ", path.read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split()[0], shlex.split(line)[1:]) for line in lines]


def sections(path: Path) -> dict[str, list[str]]:
    """Lines of each section of an Apptainer recipe; its header is the section without a name."""
    found: dict[str, list[str]] = {"": []}
    name = ""
    for line in path.read_text().splitlines():
        if line.startswith("%"):
            name = line[1:].strip()
            found[name] = []
        elif line.strip() and not line.startswith("#"):
            found[name].append(line.strip())
    return found


def test_the_dockerfile_copies_what_is_there_and_installs_it() -> None:
    found = instructions(DOCKERFILE)
    assert {word for word, _ in found} <= DOCKER_WORDS
    assert found[0][0] == "FROM"
    copied = {source: words[-1] for word, words in found if word == "COPY" for source in words[:-1]}
    assert set(copied) == INSTALLED_FROM
    assert [source for source in copied if not (ROOT / source).exists()] == []
    # A folder's content is copied, so it needs its own name again.
    assert {copied[source] for source in copied if (ROOT / source).is_dir()} == {
        f"/opt/neva/{source}" for source in copied if (ROOT / source).is_dir()
    }
    assert ["pip", "install", "--no-cache-dir", "/opt/neva", "&&", "neva", "--version"] in [
        words for word, words in found if word == "RUN"
    ]


def test_the_apptainer_recipe_does_the_same() -> None:
    found = sections(APPTAINER)
    assert set(found) - {""} <= APPTAINER_SECTIONS
    copied = dict(line.split() for line in found["files"])
    assert copied == {name: f"/opt/neva/{name}" for name in INSTALLED_FROM}
    assert found["post"] == ["pip install --no-cache-dir /opt/neva"]
    assert found["runscript"] == ['exec neva "$@"']


def test_both_start_from_the_same_supported_python() -> None:
    base = dict(line.split(": ") for line in sections(APPTAINER)[""])
    assert base == {"Bootstrap": "docker", "From": instructions(DOCKERFILE)[0][1][0]}
    metadata = configparser.ConfigParser()
    metadata.read(ROOT / "setup.cfg")
    version = re.fullmatch(r"python:(\d+\.\d+)-slim", base["From"])
    assert (
        version and f"Programming Language :: Python :: {version[1]}" in metadata["metadata"]["classifiers"]
    )


@pytest.mark.parametrize("path", [DOCKERFILE, APPTAINER], ids=lambda path: path.name)
def test_no_secret_is_built_in(path: Path) -> None:
    assert SECRET.findall(path.read_text()) == []
