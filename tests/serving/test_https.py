"""A training checkpoint answers as its `.nemo`, and over HTTPS."""

from __future__ import annotations

import ssl
from pathlib import Path

import httpx
import pytest
import trustme
from openai import OpenAI

from neva import cli
from tests.serving.conftest import QUESTION, Served, data_uri, server


def checkpoint_of(nemo: Path) -> Path:
    (found,) = nemo.parent.glob("*-last")
    return found


def test_a_checkpoint_answers_over_https_alone(nemo: Path, served: Served, tmp_path: Path) -> None:
    authority = trustme.CA()
    own = authority.issue_cert("127.0.0.1")
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    own.cert_chain_pems[0].write_to_path(certificate)
    own.private_key_pem.write_to_path(key)
    trusted = ssl.create_default_context()
    authority.configure_trust(trusted)
    flags = ["--ssl-certfile", str(certificate), "--ssl-keyfile", str(key)]
    shown = {"type": "image_url", "image_url": {"url": data_uri(served.images / "2.png")}}
    with server(checkpoint_of(nemo), tmp_path / "log", flags, trusted) as (_, url):
        assert url.startswith("https://")
        with httpx.Client(verify=trusted) as trusting:
            client = OpenAI(base_url=f"{url}/v1", api_key="none", http_client=trusting)
            (model,) = client.models.list()
            answer = client.chat.completions.create(
                model=model.id,
                messages=[{"role": "user", "content": [shown, {"type": "text", "text": QUESTION}]}],  # type: ignore[list-item, misc]
                temperature=0,
            )
        assert (model.id, answer.choices[0].message.content) == (checkpoint_of(nemo).name, "blue")
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(f"{url}/health")
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{url}/health".replace("https", "http"))


def test_the_average_of_a_run_that_kept_none_is_refused(
    nemo: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["serve", str(checkpoint_of(nemo)), "--port", "0", "--use-ema"]) == 2
    assert "kept no moving average of its weights" in capfd.readouterr().err


def test_a_key_that_asks_for_a_password_is_refused(
    nemo: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    own = trustme.CA().issue_cert("127.0.0.1")
    own.private_key_and_cert_chain_pem.write_to_path(tmp_path / "both.pem")
    text = (tmp_path / "both.pem").read_text()
    (tmp_path / "key.pem").write_text(text.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY"))
    flags = ["--ssl-certfile", str(tmp_path / "both.pem"), "--ssl-keyfile", str(tmp_path / "key.pem")]
    assert cli.main(["serve", str(nemo), *flags]) == 2
    assert "not encrypted, both in PEM" in capfd.readouterr().err
