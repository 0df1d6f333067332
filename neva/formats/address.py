"""What lies at an address, as much of it as is wanted."""

from __future__ import annotations

import time
import urllib.request
from typing import Any

_BLOCK_BYTES = 1 << 16


class TooLargeError(ValueError):
    """There is more than is wanted."""


class _Stays(urllib.request.HTTPRedirectHandler):
    """Leaves an answer that names another place as it is."""

    def redirect_request(self, *_: Any) -> None:
        """See urllib's."""


def fetch(address: str, longest: int, timeout_s: float, follows: bool = True, in_all: bool = False) -> bytes:
    """Returns what lies at an address.

    Args:
        address: of HTTP or HTTPS.
        longest: bytes that it may have.
        timeout_s: how long it may be silent.
        follows: go where it sends on to.
        in_all: the whole may take no longer either.

    Raises:
        OSError: it does not answer, or with an error.
        TooLargeError: it gives more than is wanted.
        ValueError: it is no address, or gives less than it says.
        http.client.HTTPException: it speaks no HTTP.
    """
    end = time.monotonic() + timeout_s
    request = urllib.request.Request(address, headers={"User-Agent": "neva"})
    received = bytearray()
    with urllib.request.build_opener(*([] if follows else [_Stays])).open(
        request, timeout=timeout_s
    ) as answer:
        while block := answer.read1(_BLOCK_BYTES):
            received += block
            if len(received) > longest:
                raise TooLargeError(f"it sends more than {longest // 2**20} MiB")
            if in_all and time.monotonic() > end:
                raise TimeoutError(f"it takes more than {timeout_s:.0f} s")
        if answer.length:
            raise ValueError(f"it sends {len(received)} bytes of {len(received) + answer.length}")
    return bytes(received)
