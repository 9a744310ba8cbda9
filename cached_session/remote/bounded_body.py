"""The body of an answer, read in pieces and unpacked up to a limit."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import httpx

__all__ = ["ACCEPTED_ENCODING", "TooLarge", "read_body"]

ACCEPTED_ENCODING = "gzip"
"""The only packing to ask for: zlib can stop unpacking it at a limit."""
_GZIP_WINDOW = zlib.MAX_WBITS | 16


class TooLarge(Exception):
    """A body that is longer than the limit, or whose length cannot be bounded."""


async def read_body(response: httpx.Response, limit: int) -> bytes:
    """Read and unpack a body of at most ``limit`` bytes.

    At most ``limit`` bytes and one network piece are held, whatever the server sends: a body
    without end is cut off, and a packed one is unpacked only up to the limit.

    Raises:
        TooLarge: the body is longer, or packed in a way that was not asked for.
        zlib.error: it is not what its header says.
    """
    if response.is_stream_consumed:
        # A transport without a network has read it already, and unpacked it.
        if len(response.content) > limit:
            raise TooLarge(f"more than {limit} bytes")
        return response.content
    announced = response.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:20]) > limit:
        raise TooLarge(f"{announced[:20]} bytes announced, {limit} allowed")
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", ACCEPTED_ENCODING, ""):
        raise TooLarge(f"packed as {encoding[:20]!r}, whose unpacked length cannot be limited")
    unpacker = zlib.decompressobj(_GZIP_WINDOW) if encoding == ACCEPTED_ENCODING else None
    body = bytearray()
    async for piece in response.aiter_raw():
        body += unpacker.decompress(piece, limit - len(body) + 1) if unpacker else piece
        if len(body) > limit:
            raise TooLarge(f"more than {limit} bytes")
    return bytes(body)
