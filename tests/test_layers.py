"""The rooms of `neva` import one way, third-party packages stay where they belong, and start-up stays light."""

import ast
import configparser
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

CONFIG = {"constants", "config"}
GROUPS = {"parallel.emulation", "parallel.groups"}
"""The two modules of `parallel` that know torch and Megatron only: a model needs the one, a process the other."""

MAY_IMPORT: dict[str, set[str]] = {
    "constants": set(),
    "config": {"constants"},
    "data": CONFIG,
    "model": CONFIG | {"parallel.emulation"},
    "convert": CONFIG | GROUPS | {"model"},
    "parallel.emulation": set(),
    "parallel.groups": {"parallel.emulation"},
    "parallel": CONFIG | GROUPS | {"data", "model", "convert"},
    "training": CONFIG | GROUPS | {"data", "model", "convert", "parallel"},
    "inference": CONFIG | GROUPS | {"data", "model", "convert", "parallel", "training"},
    "evaluation": CONFIG | GROUPS | {"data", "model", "convert", "parallel", "training", "inference"},
}
"""What each room may use beside itself."""

ENTRY_POINTS = {"quickstart"}
"""Rooms that, like the modules directly under `neva/`, may use all the others."""

HEAVY = {
    "torch",
    "megatron",
    "lightning",
    "pytorch_lightning",
    "nemo",
    "transformers",
    "numpy",
    "pandas",
    "matplotlib",
}
ONLY_IN: dict[str, set[str]] = {
    "lightning": {"training"},
    "pytorch_lightning": set(),
    "nemo": {"training"},
    "megatron": GROUPS | {"model", "parallel", "convert", "training", "inference"},
    "hydra": {"config", "entry point"},
}


def modules() -> list[Path]:
    """All modules of `neva`."""
    return sorted((ROOT / "neva").rglob("*.py"))


def name_of(path: Path) -> str:
    """Dotted name of the module in `path`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(name: str) -> str:
    """Room of module `name`: the part after `neva`, the modules of GROUPS apart from theirs."""
    inside = name.removeprefix("neva").lstrip(".")
    if inside in GROUPS:
        return inside
    room = inside.split(".")[0]
    return room if room in MAY_IMPORT else "entry point"


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every import in `path`, those inside functions too.

    `from a.b import c` gives `a.b.c` where that is a module of ours, else `a.b`.
    """
    package = name_of(path) if path.name == "__init__.py" else name_of(path).rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parent = package.rsplit(".", node.level - 1)[0] if node.level else ""
            base = ".".join(part for part in (parent, node.module) if part)
            for alias in node.names:
                inner = ROOT / base.replace(".", "/") / alias.name
                is_module = inner.is_dir() or inner.with_suffix(".py").is_file()
                yield node.lineno, f"{base}.{alias.name}" if is_module else base


def test_each_room_imports_only_the_rooms_below_it() -> None:
    upward = []
    for path in modules():
        room = room_of(name_of(path))
        if room == "entry point":
            continue
        allowed = MAY_IMPORT[room] | {room}
        upward += [
            f"{path.relative_to(ROOT)}:{line} imports {target}: {room} may use {sorted(allowed)}"
            for line, target in imports(path)
            if target.split(".")[0] == "neva" and target != "neva" and room_of(target) not in allowed
        ]
    assert upward == []


def test_every_room_is_a_package_with_a_place_in_the_order() -> None:
    folders = {path.parent for path in modules()}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []
    rooms = {folder.name for folder in folders if folder.parent == ROOT / "neva"}
    assert rooms - set(MAY_IMPORT) - ENTRY_POINTS == set()


def test_third_party_packages_stay_in_their_rooms() -> None:
    strays = [
        f"{path.relative_to(ROOT)}:{line} imports {target}"
        for path in modules()
        for line, target in imports(path)
        if room_of(name_of(path)) not in ONLY_IN.get(target.split(".")[0], {room_of(name_of(path))})
    ]
    assert strays == []


def test_process_groups_are_asked_for_only_where_work_is_spread_or_weights_are_sharded() -> None:
    free = {"constants", "config", "data", "model", "inference", "evaluation"}
    asking = [
        name
        for path in modules()
        if room_of(name := name_of(path)) in free and "parallel_state" in path.read_text()
    ]
    assert asking == []


def test_config_needs_nothing_heavy_even_inside_its_functions() -> None:
    heavy = [
        f"{path.relative_to(ROOT)}:{line} imports {target}"
        for path in modules()
        for line, target in imports(path)
        if room_of(name_of(path)) in ("constants", "config") and target.split(".")[0] in HEAVY
    ]
    assert heavy == []


@pytest.mark.parametrize("module", ["neva", "neva.cli", "neva.config.load", "neva.distributed.launch"])
def test_importing_the_command_loads_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(*sorted({{name.split('.')[0] for name in sys.modules}} & {HEAVY!r}))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert loaded.stdout.split() == []


def declared() -> set[str]:
    """Names of all distributions that setup.cfg asks for, normalised."""
    setup = configparser.ConfigParser(interpolation=None)
    setup.read(ROOT / "setup.cfg")
    texts = [setup["options"]["install_requires"], *setup["options.extras_require"].values()]
    lines = [line.strip() for text in texts for line in text.splitlines()]
    names = [re.split(r"[^A-Za-z0-9._-]", line)[0] for line in lines if line and not line.startswith("#")]
    return {re.sub(r"[-_.]+", "-", name).lower() for name in names}


def test_every_third_party_import_is_declared_in_setup_cfg() -> None:
    providers = packages_distributions()
    wanted = declared()
    undeclared = []
    for path in [*modules(), *(ROOT / "scripts").rglob("*.py"), *(ROOT / "bench").rglob("*.py")]:
        for line, target in imports(path):
            top = target.split(".")[0]
            if top == "neva" or top in sys.stdlib_module_names:
                continue
            provided_by = {re.sub(r"[-_.]+", "-", name).lower() for name in providers.get(top, [top])}
            if not provided_by & wanted:
                undeclared.append(f"{path.relative_to(ROOT)}:{line} imports {target}")
    assert undeclared == []


def test_the_walk_sees_an_upward_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    for name in ("data", "model"):
        (tmp_path / "neva" / name).mkdir(parents=True)
        (tmp_path / "neva" / name / "__init__.py").touch()
    bad = tmp_path / "neva/data/sample.py"
    for text in (
        "from neva.model import merge",
        "from neva import model",
        "from ..model import x",
        "import neva.model",
    ):
        bad.write_text(f"def f():\n    {text}\n")
        with pytest.raises(AssertionError, match=r"neva/data/sample\.py:2 imports neva\.model"):
            test_each_room_imports_only_the_rooms_below_it()
