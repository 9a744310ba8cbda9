"""One HTTP exchange, bounded: what a hostile or broken server can make us hold, follow or wait for.

The SDK reads an answer whole, whatever its length, and knows ``Retry-After`` in seconds only. Here
an answer is read in pieces and cut off at a limit, also while it is unpacked; no redirect is
followed, because the key must not travel to another host.
"""

from __future__ import annotations

import math
import zlib
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    import httpx

__all__ = ["Bounded", "TooLarge", "retry_after"]

GZIP = zlib.MAX_WBITS | 16


class TooLarge(Exception):
    """An answer is longer than anything that was asked for can be."""


class Bounded:
    """Stands in for the SDK's HTTP client in one request: the same connections and headers."""

    def __init__(self, client: httpx.AsyncClient, most: int) -> None:
        self._client = client
        self._most = most

    async def request(self, *, method: str, url: str, **more: Any) -> httpx.Response:
        """Send a request; its answer with a body of at most ``most`` bytes, unpacked.

        Raises:
            TooLarge: the body is longer.
        """
        request = self._client.build_request(method, url, **more)
        # The one packing whose unpacking can be cut off without the help of another library.
        request.headers["Accept-Encoding"] = "gzip"
        response = await self._client.send(request, stream=True, follow_redirects=False)
        try:
            body = await self._body(response)
        finally:
            await response.aclose()
        packed = ("content-encoding", "content-length", "transfer-encoding")
        headers = [(name, value) for name, value in response.headers.items() if name not in packed]
        whole = type(response)
        return whole(response.status_code, headers=headers, content=body, request=request)

    async def _body(self, response: httpx.Response) -> bytes:
        if response.is_stream_consumed:
            # A transport without a network has it whole, and unpacked.
            if len(response.content) > self._most:
                raise TooLarge(f"more than {self._most} bytes")
            return response.content
        announced = response.headers.get("content-length", "")
        if announced.isdecimal() and int(announced[:20]) > self._most:
            raise TooLarge(f"{announced[:20]} bytes were announced")
        packing = response.headers.get("content-encoding", "identity").strip().lower()
        if packing not in ("identity", "gzip", ""):
            raise TooLarge(f"it is packed as {packing[:20]!r}, which nobody asked for")
        unpack = zlib.decompressobj(GZIP) if packing == "gzip" else None
        body = bytearray()
        async for piece in response.aiter_raw():
            body += unpack.decompress(piece, self._most - len(body) + 1) if unpack else piece
            if len(body) > self._most:
                raise TooLarge(f"more than {self._most} bytes")
        return bytes(body)


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds that an answer asks to wait, given in seconds or as a date; None if it asks nothing
    that can be understood.

    A date is compared with the server's own clock if the answer tells it: a device whose clock is
    an hour off must not wait an hour, nor come back at once.
    """
    said = headers.get("retry-after", "").strip()
    if not said:
        return None
    try:
        seconds = float(said)
    except ValueError:
        until = _moment(said)
        theirs = _moment(headers.get("date", ""))
        if until is None:
            return None
        seconds = until - (now if theirs is None else theirs)
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _moment(text: str) -> float | None:
    try:
        return parsedate_to_datetime(text).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
