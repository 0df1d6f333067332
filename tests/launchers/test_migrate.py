"""The pages on coming from another system: their commands compose, their links lead somewhere, nothing is left out."""

import re
from pathlib import Path

import pytest

from neva.launchers.asagi_flags import NO_EFFECT, build_parser
from neva.launchers.pai_arguments import TRAIN_ARGUMENTS
from tests.test_readme import Command, check, commands

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs/migrate").glob("*.md"))
ALL = [found for page in PAGES for found in commands(page.read_text(), page.name)]


@pytest.mark.parametrize("command", ALL, ids=[f"{found.place} {' '.join(found.words)[:40]}" for found in ALL])
def test_a_command_can_be_typed(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    check(command, monkeypatch)


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs/migrate/index.md").read_text()
    assert {page.name for page in PAGES if f"({page.name})" not in index} == {"index.md"}


def test_every_argument_of_the_shell_script_has_its_line() -> None:
    text = (ROOT / "docs/migrate/pai.md").read_text()
    assert [name for name in TRAIN_ARGUMENTS if f"`{name}`" not in text] == []


def test_every_flag_of_the_launcher_is_on_its_page() -> None:
    text = (ROOT / "docs/migrate/asagi.md").read_text()
    flags = {
        flag for action in build_parser()._actions for flag in action.option_strings if flag.startswith("--")
    }
    assert {flag for flag in flags - {"--help", "--stage"} if f"`{flag}`" not in text} == set()
    assert set(NO_EFFECT) <= flags
