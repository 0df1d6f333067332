"""The page in a browser without network: upload, ask, see the answer; and that it asks for nothing elsewhere."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serving.conftest import KEY, QUESTION, Served

FOLDER = Path(__file__).resolve().parents[2] / "neva" / "serving" / "page"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium of this machine."""
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip(f"needs a browser: one of {', '.join(BROWSERS)} (Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, served: Served) -> Iterator[Any]:
    """The page as a user finds it; whatever goes wrong in it, or is asked for elsewhere, fails the test."""
    context = browser.new_context()
    page = context.new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    page.on("request", lambda asked: None if _is_ours(asked.url, served) else wrong.append(asked.url))
    page.goto(served.url)
    page.fill("#key", KEY)
    yield page
    context.close()
    assert [text for text in wrong if "status of 400" not in text] == []


def _is_ours(url: str, served: Served) -> bool:
    return url.startswith((f"{served.url}/", "data:"))


def last(page: Any, count: int) -> str:
    """The text of the last turn when there are `count` and it is whole."""
    turn = page.locator(f"#turns li:nth-child({count})[data-done]")
    turn.wait_for(timeout=60_000)
    return str(turn.locator("p").text_content())


def test_an_image_is_uploaded_asked_about_and_answered(page: Any, served: Served) -> None:
    assert page.title() == page.text_content("#name") == "tiny"
    page.set_input_files("#file", served.images / "3.png")
    page.fill("#text", QUESTION)
    page.click("#send")
    assert last(page, 2) == "white"
    assert page.locator("#turns li.user img").count() == 1 and page.locator("#chosen img").count() == 0
    page.fill("#text", "what is it?")
    page.press("#text", "Enter")
    assert last(page, 4) == "this is white"  # it knows what was said before
    page.click("#clear")
    assert page.locator("#turns li").count() == 0
    page.get_by_title("blue.png").click()
    page.locator("#chosen img").wait_for()
    page.fill("#text", QUESTION)
    page.fill("#max-tokens", "1")
    page.click("#send")
    assert last(page, 2) == "blue"
    assert page.text_content("#turns li:nth-child(2) small") == "cut at the longest answer"


def test_an_answer_is_seen_while_it_grows_and_can_be_stopped(page: Any, served: Served) -> None:
    page.fill("#text", QUESTION)
    page.fill("#max-tokens", "300")
    page.evaluate(
        "() => { const whole = body; body = (q) => JSON.stringify({ ...JSON.parse(whole(q)), min_tokens: 300 }); }"
    )
    page.click("#send")
    page.wait_for_function(  # clicks within the page: on a busy machine the answer might end before a click from here
        "() => document.querySelector('#turns li:nth-child(2) p').textContent.length > 8"
        " && (document.querySelector('#send').click(), true)"
    )
    page.wait_for_function("document.querySelector('#turns li:nth-child(2) small').textContent")
    assert len(last(page, 2)) > 8
    assert page.text_content("#turns li:nth-child(2) small") == "stopped"
    assert page.text_content("#send") == "Ask"


def test_what_the_server_refuses_is_shown_and_the_question_is_kept(page: Any, served: Served) -> None:
    page.fill("#text", "say </s>")
    page.click("#send")
    last(page, 2)
    assert "special token" in page.text_content("#turns li.problem small")
    assert page.input_value("#text") == "say </s>"


def test_the_page_is_whole_and_comes_from_this_server_alone(served: Served) -> None:
    html = httpx.get(f"{served.url}/")
    assert html.headers["content-security-policy"].startswith("default-src 'self'")
    files = {
        name: httpx.get(f"{served.url}/page/{name}").text for name in re.findall(r'"page/([^"]+)"', html.text)
    }
    assert set(files) == {"page.css", "page.js"} == {path.name for path in FOLDER.iterdir()} - {"page.html"}
    assert re.findall(r"https?://", html.text + "".join(files.values())) == []
    named = set(re.findall(r'\bat\("([\w-]+)"\)', files["page.js"]))
    assert named and {name for name in named if f'id="{name}"' not in html.text} == set()
    facts = httpx.get(f"{served.url}/page/facts").json()
    assert facts["examples"] == ["blue.png", "green.png", "red.png", "white.png"] and facts["has_key"]
    image = httpx.get(f"{served.url}/page/examples/2")
    assert (
        image.headers["content-type"] == "image/png"
        and image.content == (served.allowed / "red.png").read_bytes()
    )
    for absent in ("4", "-1", "..%2Foutside.png"):
        assert httpx.get(f"{served.url}/page/examples/{absent}").status_code in (400, 404)
