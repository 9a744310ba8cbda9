"""Reading the body of an answer: in pieces, and decompressed up to a limit."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import httpx

__all__ = ["ACCEPTED_ENCODING", "TooLarge", "read_body"]

ACCEPTED_ENCODING = "gzip"
"""The only compression that requests accept: zlib can stop decompressing it at a limit."""
_GZIP_WINDOW = zlib.MAX_WBITS | 16


class TooLarge(Exception):
    """A body is longer than the limit, or its decompressed length cannot be limited."""


async def read_body(response: httpx.Response, limit: int) -> bytes:
    """Read and decompress a body of at most ``limit`` bytes.

    Memory use is at most ``limit`` bytes and one network piece, whatever the server sends: reading
    an endless body and decompressing a compressed body stop at the limit.

    Raises:
        TooLarge: the body is longer than ``limit``, or compressed in a way that the request did not
            accept.
        zlib.error: the header announces gzip, and the body is not valid gzip data.
    """
    if response.is_stream_consumed:
        # A transport without a network has already read and decompressed the body.
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
