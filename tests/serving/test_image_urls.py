"""What a server fetches: images of the hosts that it may ask, as large and as late as it may be, and nothing else."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from neva.errors import SampleError
from neva.serving import image_urls
from neva.serving.image_urls import image_bytes
from neva.serving.options import ServeOptions

CONTENT = b"an image" * 1000
HOSTS = ServeOptions(max_body_mib=1, allowed_media_domains=("images.example", "127.0.0.1"))


class Images(BaseHTTPRequestHandler):
    """Sends an image, an image without end, and an image a byte at a time; names other places."""

    def do_GET(self) -> None:
        match self.path:
            case "/image":
                self._head(200)
                self.wfile.write(CONTENT)
            case "/endless":
                self._head(200)
                while True:
                    self.wfile.write(bytes(1 << 16))
            case "/slow":
                self._head(200)
                for _ in range(100):
                    self.wfile.write(b"a")
                    time.sleep(0.02)
            case "/cut":
                self._head(200, ("Content-Length", "10"))
            case "/elsewhere":
                self._head(302, ("Location", "/image"))
            case _:
                self._head(404)

    def _head(self, status: int, *headers: tuple[str, str]) -> None:
        self.send_response(status)
        for header in headers:
            self.send_header(*header)
        self.end_headers()

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:  # the other side has had enough
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Images) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_an_image_of_an_allowed_host_is_fetched(site: str) -> None:
    assert image_bytes(f"{site}/image", HOSTS) == CONTENT


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/absent", "127.0.0.1 answered 404 Not Found$"),
        ("/elsewhere", "127.0.0.1 answered 302 Found, and it is not followed elsewhere"),
        ("/endless", r"127.0.0.1 could not be asked .it sends more than 1 MiB"),
        ("/slow", r"127.0.0.1 could not be asked .it takes more than"),
        ("/cut", r"127.0.0.1 could not be asked .it sends 0 bytes of 10"),
    ],
)
def test_what_a_host_does_not_send_is_told(
    site: str, monkeypatch: pytest.MonkeyPatch, path: str, message: str
) -> None:
    monkeypatch.setattr(image_urls, "_DEADLINE_S", 0.5)
    with pytest.raises(SampleError, match=message):
        image_bytes(site + path, HOSTS)


def test_a_port_on_which_nobody_answers_is_told() -> None:
    with pytest.raises(SampleError, match="127.0.0.1 could not be asked .*refused"):
        image_bytes("http://127.0.0.1:1/a.png", HOSTS)


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost/a.png",
        "http://127.0.0.1.example/a.png",
        "http://a.images.example/a.png",
        "http://127.0.0.1@localhost/a.png",
        "http://localhost@127.0.0.1/a.png",
        "http://localhost\\@127.0.0.1/a.png",
        "http://127.0.0.1\\.localhost/a.png",
        "http://127.0.0.1/a\r\nHost: localhost",
        "http://[/a.png",
        "ftp://127.0.0.1/a.png",
        "//127.0.0.1/a.png",
        "a.png",
    ],
)
def test_every_other_url_is_refused_with_the_hosts_that_may_be_asked(url: str) -> None:
    with pytest.raises(SampleError, match="or a URL of images.example, 127.0.0.1$"):
        image_bytes(url, HOSTS)
    with pytest.raises(SampleError, match="this server fetches nothing"):
        image_bytes(url, ServeOptions())
