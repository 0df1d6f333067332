"""The flags of `neva serve`: what is wrong is one sentence, before anything is loaded."""

from __future__ import annotations

import importlib.util
import socket
from pathlib import Path

import pytest

from neva import cli
from neva.commands import serve
from neva.serving.options import ServeOptions


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """What lies where a model is expected."""
    path = tmp_path / "my.nemo"
    path.write_bytes(b"no archive")
    return path


@pytest.mark.parametrize(
    ("flags", "status", "message"),
    [
        (["--examples", "/none"], 2, "--examples: no folder at /none"),
        (["--allowed-local-media-path", "/none"], 2, "--allowed-local-media-path: no folder at /none"),
        (["--examples", "."], 2, "they are shown on the page, which --page adds"),
        (["--port", "PORT"], 2, "cannot listen on 127.0.0.1, port PORT (Address already in use)"),
        (["--port", "0"], 2, "my.nemo"),
        (["--ssl-keyfile", "/none"], 2, "--ssl-keyfile: found without --ssl-certfile FILE"),
        (["--ssl-certfile", "/none"], 2, "expected a certificate and its key, not encrypted, both in PEM"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    model: Path, capfd: pytest.CaptureFixture[str], flags: list[str], status: int, message: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert cli.main(["serve", str(model), *[flag.replace("PORT", port) for flag in flags]]) == status
    (sentence,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("neva: ")]
    assert message.replace("PORT", port) in sentence


def test_an_absent_model_and_an_absent_extra_are_named(
    model: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(["serve", str(model.parent / "none.nemo")]) == 2
    assert "no .nemo, extracted folder or checkpoint at" in capfd.readouterr().err
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "uvicorn" else found(name))
    assert cli.main(["serve", str(model)]) == 2
    assert "needs uvicorn, which is not installed: pip install 'neva[serve]'" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("flags", "is_warned"),
    [
        (["--host", "0.0.0.0"], True),
        (["--host", "::"], True),
        (["--host", "0.0.0.0", "--api-key", "secret"], False),
        (["--host", "::1"], False),
        (["--host", "localhost"], False),
        ([], False),
    ],
)
def test_a_server_that_everybody_can_ask_says_so(
    model: Path, capfd: pytest.CaptureFixture[str], flags: list[str], is_warned: bool
) -> None:
    assert cli.main(["serve", str(model), *flags, "--examples", "/none"]) == 2
    serve._check(serve.parse([str(model), *flags]))
    assert ("everybody who reaches" in capfd.readouterr().err) == is_warned


def test_the_key_may_be_in_the_environment_and_flags_have_one_default(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(serve.KEY_VARIABLE, "secret")
    assert serve.parse([str(model)]).api_key == "secret"
    assert serve.parse([str(model), "--api-key", "other"]).api_key == "other"
    monkeypatch.delenv(serve.KEY_VARIABLE)
    given = vars(serve.parse([str(model)]))
    assert {name: given[name] for name in ServeOptions.__dataclass_fields__} == vars(ServeOptions())
