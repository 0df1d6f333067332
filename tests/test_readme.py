"""Every command that README.md and docs/ show can be typed: it parses, composes, and names files that exist."""

import argparse
import itertools
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from neva import cli
from neva.commands import convert as convert_cli
from neva.config.compose import RECIPE_ENVIRONMENT_VARIABLE
from neva.config.load import load
from neva.distributed import launch
from neva.errors import ConfigError
from tests.published import write_configs

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "checkpoints/README.md"])

YOURS = (
    "checkpoints/",
    "datasets/",
    "nemo_experiments/",
    "llava_test_examples/",
    ".venv/",
    "/data/",
    "/path/",
)
"""Places that a reader fills or a run writes: paths below them need not exist in a clone."""

OTHER_TOOLS = {
    ".",
    "cd",
    "cp",
    "curl",
    "echo",
    "export",
    "git",
    "head",
    "sh",
    "hf",
    "pip",
    "tensorboard",
    "unzip",
    "apt",
    "mkdir",
    "pre-commit",
    "nvidia-smi",
}
PASSES_ON = {
    "scripts/neva_pretrain.py",
    "scripts/neva_finetune.py",
    "scripts/neva_inference.py",
    "scripts/quickstart.py",
    "scripts/slurm/train.sbatch",
}
"""Scripts whose flags are read elsewhere."""
VERB_OF_SCRIPT = {
    "neva_pretrain.py": "train",
    "neva_finetune.py": "train",
    "neva_peft.py": "train",
    "neva_inference.py": "infer",
    "train.sbatch": "train",
}
GROUPS = (
    *("trainer", "exp_manager", "model", "model/llm", "model/vision_encoder", "model/second_vision_encoder"),
    *("model/projector", "data", "optim", "stage", "parallel"),
)
LAUNCHERS = {"torchrun", "sbatch"}
"""Their own options stand in front of the script."""


@dataclass(frozen=True)
class Command:
    """One command of a page, `environment` being the assignments in front of it."""

    place: str
    environment: dict[str, str]
    words: list[str]


def shell_lines(text: str) -> Iterator[tuple[int, str]]:
    """Line number and text of each line in the page's bash fences, continued lines joined."""
    for fence in re.finditer(r"^```(?:bash|sh|console)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        first = text.count("\n", 0, fence.start(1)) + 1
        pending, start = "", first
        for number, line in enumerate(fence[1].splitlines(), first):
            start = start if pending else number
            pending += line.removesuffix("\\")
            if not line.endswith("\\"):
                yield start, pending
                pending = ""


def commands(text: str, page: str) -> Iterator[Command]:
    """All commands in the text of a page; `a && b` is two."""
    for number, line in shell_lines(text):
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;")
        lexer.whitespace_split = True
        words = list(lexer)
        while words:
            end = next((at for at, word in enumerate(words) if word in ("&&", "|", ";", "&")), len(words))
            one, words = words[:end], words[end + 1 :]
            environment: dict[str, str] = {}
            while one and (assignment := re.fullmatch(r"([A-Z_]+)=(.*)", one[0])):
                environment[assignment[1]] = assignment[2]
                one = one[1:]
            if one:
                yield Command(f"{page}:{number}", environment, one)


def check_make(words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    variables = set(re.findall(r"^([A-Z]+) \?=", makefile, re.MULTILINE))
    for word in words:
        name, is_variable, _ = word.partition("=")
        assert name in (variables if is_variable else targets), f"Makefile has no {name}"


def check_neva(verb: str, arguments: list[str]) -> None:
    """Parse as the command would; compose, check and validate the configuration without running it."""
    assert verb in cli.verbs(), f"no verb {verb}"
    if "--help" in arguments:
        return
    if verb == "convert":
        parser = argparse.ArgumentParser(exit_on_error=False)
        convert_cli.add_arguments(parser)
        unknown = parser.parse_known_args(arguments)[1]
        assert unknown == [], f"unrecognized arguments {unknown}"
        return
    options = cli.verbs()[verb].parse(arguments)
    if not hasattr(options, "overrides"):
        return  # a verb without a recipe
    overrides = options.overrides
    if getattr(options, "multirun", False):
        overrides = [re.sub(r",.*", "", override) for override in overrides]
    trainer = load(options.config_name, overrides, options.config_dir).trainer
    if launch.is_stated():
        launch.identify(trainer.devices, trainer.num_nodes)


def check_paths(words: list[str]) -> None:
    values = [word.partition("=")[2] or word for word in words if not word.startswith("-")]
    for value in values:
        if "/" in value and "://" not in value and not value.startswith(YOURS):
            assert (ROOT / value).exists(), (
                f"{value} is neither in the repository nor declared as the reader's own"
            )


def check(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail when the command could not be typed as shown."""
    monkeypatch.delenv(RECIPE_ENVIRONMENT_VARIABLE, raising=False)
    for name, value in command.environment.items():
        monkeypatch.setenv(name, value)
    first, rest = command.words[0].removeprefix(".venv/bin/"), command.words[1:]
    if first in LAUNCHERS:
        first, rest = "python", list(itertools.dropwhile(lambda word: word.startswith("--"), rest))
    if first == "make":
        check_make(rest)
    elif first == "neva":
        if rest != ["--help"]:
            check_neva(rest[0], rest[1:])
    elif first == "python" and not rest[0].startswith("-"):
        assert (ROOT / rest[0]).is_file(), f"no script {rest[0]}"
        flags = {word for word in rest[1:] if word.startswith("--")}
        source = (ROOT / rest[0]).read_text()
        assert [flag for flag in flags if f'"{flag}"' not in source and rest[0] not in PASSES_ON] == []
        if verb := VERB_OF_SCRIPT.get(Path(rest[0]).name):
            check_neva(verb, rest[1:])
    else:
        assert first in OTHER_TOOLS | {"python", "python3"}, f"{first} is not a command that a reader has"
    if first not in ("hf", "curl"):  # its names and headers hold slashes
        check_paths([word for word in rest if not re.match(r"[\w/@.]+/[\w@]+=", word)])


@pytest.fixture
def readers_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a reader has: YAML files of NeVA, and the recipe that the page on configuration shows."""
    (tmp_path / "old_conf").symlink_to(ROOT / "tests/config/neva_yaml")
    (tmp_path / "my_conf").mkdir()
    page = (ROOT / "docs/configuration.md").read_text()
    for name, text in re.findall(
        r"^```yaml\n# (my_conf/\w+\.yaml)\n(.*?)^```", page, re.MULTILINE | re.DOTALL
    ):
        (tmp_path / name).write_text(text)
    write_configs(tmp_path / "checkpoints")
    monkeypatch.chdir(tmp_path)


ALL = [c for page in PAGES for c in commands(page.read_text(), str(page.relative_to(ROOT)))]


@pytest.mark.parametrize("command", ALL, ids=[f"{c.place} {' '.join(c.words)[:60]}" for c in ALL])
@pytest.mark.usefixtures("readers_folder")
def test_command(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    check(command, monkeypatch)


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_page_is_filled_and_its_links_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    assert re.findall(r"\{\{.*?\}\}", text) == []
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    assert [link for link in links if link and not (page.parent / link).exists()] == []


def test_every_page_of_docs_is_in_the_index() -> None:
    index = (ROOT / "docs/index.md").read_text()
    pages = {page.name for page in ROOT.glob("docs/*.md")} - {"index.md"}
    assert {name for name in pages if f"({name})" not in index} == set()


def test_every_option_of_a_group_is_named_in_its_row() -> None:
    page = (ROOT / "docs/configuration.md").read_text()
    rows = dict(re.findall(r"^\| `([\w/]+)` \| (`[^|]+) \|", page.partition("| group |")[2], re.MULTILINE))
    assert {group: set(re.findall(r"`([\w.]+)`", row)) for group, row in rows.items()} == {
        group: {file.stem for file in (ROOT / "conf" / group).glob("*.yaml")} for group in GROUPS
    }


def test_every_place_where_recipes_look_for_weights_is_in_the_table_of_checkpoints() -> None:
    table = (ROOT / "checkpoints/README.md").read_text()
    looked = {
        source
        for file in (ROOT / "conf").rglob("*.yaml")
        for source in re.findall(r"from_pretrained: checkpoints/(\S+)", file.read_text())
    }
    assert looked and {source for source in looked if f"`{source}`" not in table} == set()


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("make quickstrat", "Makefile has no quickstrat"),
        ("neva trian --config-name llava_7b_pretrain", "no verb trian"),
        ("python scripts/neva_train.py", "no script"),
        ("neva train --config-name llava_7b_pretrain model.optim.learning_rate=1", "learning_rate"),
        ("neva train --config-name llava_8b_pretrain", "no recipe"),
        ("NEMO_CONFIG=llava_7b_finetune python scripts/neva_finetune.py \\\n    trainer.gpus=8", "gpus"),
        ("neva convert checkpoints/x.nemo checkpoints/y --to hf", "unrecognized arguments"),
        ("python scripts/checkpoint_converters/convert_llava_nemo_to_hf.py --output x", "--output"),
        ("python scripts/neva_pretrain.py", "no recipe chosen"),
        ("tensorboard --logdir here && rm -rf /", "rm is not a command"),
        ("pip install -r requirements/dev.txt", "neither in the repository"),
    ],
)
def test_a_wrong_command_is_found(line: str, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = list(commands(f"text\n```bash\n{line}\n```\n", "page"))
    assert {command.place for command in found} == {"page:3"}
    with pytest.raises((AssertionError, ConfigError), match=problem):
        for command in found:
            check(command, monkeypatch)
