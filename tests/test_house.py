"""One word, one meaning: class names are unique, and every room and module says what it is for."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted((ROOT / "neva").rglob("*.py"))
PACKAGES = [path for path in MODULES if path.name == "__init__.py"]
LONGEST_DOCSTRING = 2
"""Lines of a package's docstring."""


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def docstring(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


def classes(path: Path) -> list[str]:
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return [node.name for node in nodes if isinstance(node, ast.ClassDef)]


def test_no_two_classes_have_one_name() -> None:
    modules_by_class = defaultdict(list)
    for path in MODULES:
        for name in classes(path):
            modules_by_class[name].append(name_of(path))
    assert {name: found for name, found in modules_by_class.items() if len(found) > 1} == {}


def test_every_module_says_what_it_is_for() -> None:
    assert [name_of(path) for path in MODULES if not docstring(path)] == []


@pytest.mark.parametrize("path", PACKAGES, ids=name_of)
def test_a_package_has_a_short_docstring_and_nothing_else(path: Path) -> None:
    text = docstring(path)
    assert 1 <= len(text.splitlines()) <= LONGEST_DOCSTRING
    body = ast.parse(path.read_text(encoding="utf-8")).body
    names = {target.id for node in body[1:] for target in getattr(node, "targets", [])}
    # the one thing that a package holds is the version of the whole
    assert (len(body) - 1, names) == ((1, {"__version__"}) if path.parent.name == "neva" else (0, set()))
