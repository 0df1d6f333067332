"""Where the image that a record names lies: in the image folder, in the record itself, or at an address."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from neva.data.sources.media_folder import MediaFolder, has_own_place
from neva.data.sources.source import MediaFile
from neva.errors import SampleError
from neva.formats.address import TooLargeError, fetch
from neva.formats.atomic_write import finished_target
from neva.formats.stored_file import StoredFile

FETCH_TIMEOUT_S = 10.0
LARGEST_FETCHED = 64 * 2**20
"""Bytes; a photo has some millions."""

_DATA_URI = re.compile(r"data:[\w.+/-]*(?:;[\w=.-]+)*?;base64,", re.ASCII)


@dataclass(frozen=True)
class MediaFiles:
    """Finds what a record names."""

    folder: MediaFolder
    fetched: Path | None
    """Folder of images that were fetched from addresses; None: none are fetched."""

    def image(self, name: str | MediaFile) -> MediaFile:
        """Returns the image of that name, itself where it is a file.

        One at an address is fetched, unless it was before.

        Raises:
            SampleError: a data URI that cannot be read, or an address that gives no image or must not be asked.
        """
        if not isinstance(name, str) or not has_own_place(name):
            return self.folder / name
        if name.startswith("data:"):
            return _from_data_uri(name)
        if self.fetched is None:
            raise SampleError(
                f"the image {name:.120} lies at an address: set model.data.image_urls=true to fetch it, or save it as "
                "a file"
            )
        path = self.fetched / hashlib.sha256(name.encode()).hexdigest()
        if not path.is_file():
            content = _fetch(name)
            with finished_target(path, overwrite=True) as work:  # another worker may have been faster
                work.write_bytes(content)
        return path


def _from_data_uri(uri: str) -> StoredFile:
    head = _DATA_URI.match(uri)
    try:
        if head is None:
            raise ValueError("no base64")
        content = base64.b64decode(uri[head.end() :], validate=True)
    except (ValueError, binascii.Error) as error:
        raise SampleError(
            f"the data URI {uri[:40]!r}… cannot be read ({error}); expected data:image/…;base64,…",
            "broken image",
        ) from error
    return StoredFile(f"{uri[: head.end()]}…", lambda: content, len(content))


def _fetch(address: str) -> bytes:
    """Returns what lies at an address; SampleError when it does not answer, or with too much or too little."""
    try:
        return fetch(address, LARGEST_FETCHED, FETCH_TIMEOUT_S)
    except TooLargeError as error:
        raise SampleError(
            f"the image at {address:.200} is larger than {LARGEST_FETCHED // 2**20} MiB", "missing image"
        ) from error
    except (OSError, ValueError, HTTPException) as error:  # URLError and timeouts are OSErrors
        text = " ".join(str(error).split())
        raise SampleError(
            f"the image at {address:.200} cannot be fetched ({text:.120})", "missing image"
        ) from error
