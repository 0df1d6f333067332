"""What `neva serve` is told: where it listens, how a model is loaded, and the limits of what is asked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ServeOptions:
    """The flags of `neva serve`; no second place has their defaults."""

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    max_num_seqs: int = 8
    """Answers that grow together."""
    max_queue: int = 64
    """Requests that wait beside those."""
    max_tokens: int = 1024
    """Of an answer, at the most."""
    max_body_mib: int = 32
    max_images: int = 8
    max_image_pixels: int = 50_000_000
    allowed_local_media_path: Path | None = None
    """Folder of images that `file://` may name; None: no file is read."""
    allowed_media_domains: tuple[str, ...] = ()
    """Hosts whose images may be fetched; none: nothing is fetched."""
    ssl_certfile: Path | None = None
    """Certificate chain in PEM; None: plain HTTP."""
    ssl_keyfile: Path | None = None
    """Its private key; None: it lies in `ssl_certfile`."""
    page: bool = False
    examples: Path | None = None
    """Folder of images that the page offers."""
