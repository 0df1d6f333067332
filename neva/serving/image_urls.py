"""What the URL of an image leads to: data in it, a file of a folder that may be read, a host that may be asked."""

from __future__ import annotations

import base64
import binascii
import http.client
import urllib.error
from pathlib import Path
from urllib.parse import unquote, urlsplit

from neva.errors import SampleError
from neva.formats.address import fetch
from neva.serving.options import ServeOptions

_DEADLINE_S = 10.0
"""Until an image of another host is here."""
_SCHEMES = ("http", "https")


def image_bytes(url: str, options: ServeOptions) -> bytes:
    """Returns the file that a URL names.

    Raises:
        SampleError: it names none, or one that this server may not have.
    """
    header, _, content = url.partition(",")
    if header.startswith("data:") and header.endswith(";base64"):
        try:
            return base64.b64decode(content, validate=True)
        except (binascii.Error, ValueError) as error:
            raise SampleError(f"its data is not base64 ({error})") from error
    if url.startswith("file://"):
        return _of_folder(url, options.allowed_local_media_path)
    return _of_host(url, options)


def _of_folder(url: str, folder: Path | None) -> bytes:
    """Returns the content of a file in the folder that may be read; every other path gets the same refusal."""
    if folder is not None:
        path = Path(unquote(urlsplit(url).path))
        try:
            if path.resolve().is_relative_to(folder.resolve()) and path.is_file():
                return path.read_bytes()
        except (OSError, ValueError):  # a loop of links, a zero byte in a name, no permission
            pass
    raise SampleError(
        "found a file's URL that this server may not read; send data:image/png;base64,…, or start it with "
        "--allowed-local-media-path FOLDER"
    )


def _of_host(url: str, options: ServeOptions) -> bytes:
    """Returns what an allowed host sends; it may not send on to another one."""
    host = _host(url)
    if host not in options.allowed_media_domains:
        known = ", ".join(options.allowed_media_domains)
        raise SampleError(
            f"found the URL {url!r:.80}, expected data:image/png;base64,… "
            + (f"or a URL of {known}" if known else "(this server fetches nothing)")
        )
    try:
        return fetch(url, options.max_body_mib * 2**20, _DEADLINE_S, follows=False, in_all=True)
    except urllib.error.HTTPError as error:
        sends_on = ", and it is not followed elsewhere" if 300 <= error.code < 400 else ""
        raise SampleError(f"{host} answered {error.code} {error.reason}{sends_on}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise SampleError(f"{host} could not be asked ({' '.join(str(error).split()):.200})") from error


def _host(url: str) -> str | None:
    """Returns the host of a plain URL, in small letters; None for all that programs could read differently."""
    try:
        parts = urlsplit(url)
        is_plain = parts.scheme in _SCHEMES and not set(parts.netloc) & set("@\\")
        return parts.hostname if is_plain and url.isascii() and url.isprintable() else None
    except ValueError:
        return None
