"""Images that lie in their record or at an address."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

from neva.data.media import files
from neva.data.media.files import MediaFiles
from neva.data.media.image import image_size, load_image
from neva.errors import SampleError
from neva.formats.stored_file import StoredFile
from tests.conftest import random_image


def png() -> bytes:
    buffer = BytesIO()
    random_image(20, 30, seed=1).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def address() -> Iterator[tuple[str, list[str]]]:
    """A server on this machine, and what it was asked for."""
    asked: list[str] = []

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(404 if "gone" in self.path else 200)
            self.end_headers()
            self.wfile.write(png() if "gone" not in self.path else b"")

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_data_uri_is_the_image_that_it_holds(tmp_path: Path) -> None:
    found = MediaFiles(tmp_path, None).image(f"data:image/png;base64,{base64.b64encode(png()).decode()}")
    assert isinstance(found, StoredFile) and image_size(found) == (20, 30)
    assert np.array_equal(np.asarray(load_image(found)), np.asarray(random_image(20, 30, seed=1)))


@pytest.mark.parametrize("uri", ["data:image/png,abc", "data:image/png;base64,a?", "data:"])
def test_a_data_uri_that_cannot_be_read_is_one_sentence(uri: str, tmp_path: Path) -> None:
    with pytest.raises(SampleError, match="the data URI .* cannot be read"):
        MediaFiles(tmp_path, None).image(uri)
    broken = MediaFiles(tmp_path, None).image("data:image/png;base64,AAAA")
    assert isinstance(broken, StoredFile)
    with pytest.raises(SampleError, match="image file data:image/png;base64,… cannot be decoded"):
        load_image(broken)


def test_an_address_is_asked_once_and_only_where_the_key_says_so(
    address: tuple[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, asked = address
    with pytest.raises(SampleError, match="lies at an address: set model.data.image_urls=true"):
        MediaFiles(tmp_path, None).image(f"{base}/a.png")
    kept = MediaFiles(tmp_path, tmp_path / "kept")
    paths = {kept.image(f"{base}/a.png") for _ in range(2)}
    assert len(paths) == 1 and asked == ["/a.png"]
    (path,) = paths
    assert isinstance(path, Path) and path.read_bytes() == png()
    with pytest.raises(SampleError, match=r"cannot be fetched \(HTTP Error 404: Not Found\)"):
        kept.image(f"{base}/gone.png")
    monkeypatch.setattr(files, "LARGEST_FETCHED", 100)
    with pytest.raises(SampleError, match="is larger than 0 MiB"):
        kept.image(f"{base}/b.png")
    with pytest.raises(SampleError, match="cannot be fetched"):
        kept.image("http://127.0.0.1:1/a.png")
    assert sorted(kept.fetched.iterdir()) == [path]  # type: ignore[union-attr]
