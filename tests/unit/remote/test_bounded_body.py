from __future__ import annotations

import gzip
import zlib
from collections.abc import AsyncIterator

import httpx
import pytest

from cached_session.remote.bounded_body import TooLarge, read_body


class Pieces(httpx.AsyncByteStream):
    """A body in pieces."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = pieces

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self.pieces:
            yield piece


def response(*pieces: bytes, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.Response(200, headers=named, stream=Pieces(*pieces))


@pytest.mark.parametrize("pieces", [(b"abc",), (b"a", b"bc"), (b"", b"abc", b"")])
async def test_a_body_of_exactly_the_limit_is_read(pieces: tuple[bytes, ...]) -> None:
    """The limit itself is allowed."""
    assert await read_body(response(*pieces), 3) == b"abc"


@pytest.mark.parametrize("pieces", [(b"abcd",), (b"abc", b"d")])
async def test_a_byte_more_is_refused(pieces: tuple[bytes, ...]) -> None:
    """The error names the limit."""
    with pytest.raises(TooLarge, match="more than 3 bytes"):
        await read_body(response(*pieces), 3)


async def test_an_announced_length_is_checked_first() -> None:
    """Both figures are in the error."""
    with pytest.raises(TooLarge, match="4 bytes announced, 3 allowed"):
        await read_body(response(content_length="4"), 3)


async def test_a_packed_body_is_measured_unpacked() -> None:
    """What counts is the memory that the body takes."""
    packed = gzip.compress(b"x" * 1000)
    halves = packed[:10], packed[10:]
    assert await read_body(response(*halves, content_encoding="gzip"), 1000) == b"x" * 1000
    with pytest.raises(TooLarge):
        await read_body(response(*halves, content_encoding=" GZIP "), 999)


async def test_another_packing_is_refused() -> None:
    """Only gzip was asked for."""
    with pytest.raises(TooLarge, match="'br', whose unpacked length cannot be limited"):
        await read_body(response(b"", content_encoding="br"), 3)


async def test_a_broken_packing_is_an_error() -> None:
    """A body that is not gzip, although its header says so, has no value."""
    with pytest.raises(zlib.error):
        await read_body(response(b"not gzip", content_encoding="gzip"), 100)


async def test_a_body_that_was_read_already_is_measured_too() -> None:
    """A transport without a network may hand it over whole."""
    whole = httpx.Response(200, content=b"abcd")
    assert await read_body(whole, 4) == b"abcd"
    with pytest.raises(TooLarge):
        await read_body(whole, 3)
