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

LEVELS: tuple[tuple[str, ...], ...] = (
    ("constants", "errors"),
    ("findings", "precision", "quick_imports", "registry"),
    ("formats",),
    ("families", "metrics", "templates"),
    ("config",),
    ("data", "model", "planner"),
    ("weights",),
    ("optim",),
    ("distributed",),
    ("checkpoint",),
    ("inference",),
    ("training",),
    ("convert", "serving"),
    ("evaluation",),
    ("api", "commands", "launchers"),
    ("cli",),
    ("__main__",),
)
"""Rooms, and modules directly under `neva/`: each may import those of the levels above its own, and itself."""

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
NEVER_HEAVY = {"constants", "errors", "findings", "registry", "templates", "config"}
"""Rooms that import nothing of HEAVY even inside functions."""

ONLY_IN: dict[str, set[str]] = {
    "lightning": {"training"},
    "pytorch_lightning": set(),
    "nemo": {"training"},
    "hydra": {"config", "commands"},
    "fastapi": {"serving"},
    "uvicorn": {"serving"},
}
"""Third-party packages that one or two rooms may import."""

ASK_FOR_GROUPS = ("neva.distributed", "neva.checkpoint", "neva.optim", "neva.training.step")
"""Where Megatron's `parallel_state` may be asked."""

LIGHT_IMPORTS = (
    "import neva",
    "import neva.cli",
    "import neva.config.load",
    "import neva.api",
    "import neva.distributed.launch",
    "import neva.planner.rank, neva.planner.report",
    "from neva import cli; cli.verbs()",
    "import neva.formats.archive, neva.formats.nemo_header",
    "from neva import registry as r; [r.LANGUAGE_FAMILIES.names(), r.VISION_FAMILIES.names(), r.CONNECTORS.names()]",
    "from neva import registry as r; [r.TEMPLATES.names(), r.SAMPLERS.names(), r.METRICS.names(), r.KITS.names()]",
)
"""What help, a configuration error, `neva plan` and a look into the registries run."""


def modules() -> list[Path]:
    """All modules of `neva`."""
    return sorted((ROOT / "neva").rglob("*.py"))


def name_of(path: Path) -> str:
    """Dotted name of the module in `path`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(name: str) -> str:
    """Room of module `name`, or the module itself where it lies directly under `neva/`."""
    return name.split(".")[1]


def level_of(room: str) -> int:
    """Number of the level that `room` is on."""
    return next(number for number, rooms in enumerate(LEVELS) if room in rooms)


def may_import(room: str, target: str) -> bool:
    """Whether modules of `room` may import those of `target`."""
    return room == target or level_of(target) < level_of(room)


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


def test_each_room_imports_only_the_rooms_above_it() -> None:
    upward = []
    for path in modules():
        name = name_of(path)
        upward += [
            f"{path.relative_to(ROOT)}:{line} imports {target}"
            for line, target in imports(path)
            if name != "neva" and target.startswith("neva.")
            if not may_import(room_of(name), room_of(target))
        ]
    assert upward == []


def test_every_room_is_a_package_with_a_place_in_the_order() -> None:
    folders = {path.parent for path in modules()}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []
    rooms = {room_of(name) for path in modules() if (name := name_of(path)) != "neva"}
    assert rooms - {room for level in LEVELS for room in level} == set()


def test_third_party_packages_stay_in_their_rooms() -> None:
    strays = [
        f"{path.relative_to(ROOT)}:{line} imports {target}"
        for path in modules()
        for line, target in imports(path)
        if (only := ONLY_IN.get(target.split(".")[0])) is not None and room_of(name_of(path)) not in only
    ]
    assert strays == []


def test_process_groups_are_asked_for_only_where_work_is_spread_or_weights_are_sharded() -> None:
    asking = [
        name
        for path in modules()
        if not (name := name_of(path)).startswith(ASK_FOR_GROUPS) and "parallel_state" in path.read_text()
    ]
    assert asking == []


def test_rooms_that_start_up_needs_import_nothing_heavy_even_inside_their_functions() -> None:
    heavy = [
        f"{path.relative_to(ROOT)}:{line} imports {target}"
        for path in modules()
        for line, target in imports(path)
        if (name := name_of(path)) != "neva"
        and room_of(name) in NEVER_HEAVY
        and target.split(".")[0] in HEAVY
    ]
    assert heavy == []


@pytest.mark.parametrize("statements", LIGHT_IMPORTS)
def test_start_up_loads_nothing_heavy(statements: str) -> None:
    code = f"{statements}\nimport sys\nprint(*sorted({{name.split('.')[0] for name in sys.modules}} & {HEAVY!r}))"
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
    own = [path for folder in ("examples", "scripts", "bench") for path in (ROOT / folder).rglob("*.py")]
    for path in [*modules(), *own]:
        for line, target in imports(path):
            top = target.split(".")[0]
            if top in ("neva", "examples", "bench") or top in sys.stdlib_module_names:
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
            test_each_room_imports_only_the_rooms_above_it()
