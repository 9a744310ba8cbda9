"""The pages of a first listing are requested in parallel, and returned in order."""

from __future__ import annotations

import asyncio
import random
import time
from types import SimpleNamespace
from typing import Any

import pytest

from cached_session import SyncOptions
from cached_session.history.session_ref import SessionRef
from cached_session.remote.errors import RemoteError, Verdict
from cached_session.replication.listing import PageFetcher
from cached_session.replication.listing_scan import PageRequest, stride


class Server:
    """Lists numbers once the test releases a page."""

    def __init__(self, length: int, most: int = 1000) -> None:
        self.length = length
        self.most = most
        self.asked: list[tuple[int, int]] = []
        self.under_way = self.side_by_side = 0
        self.two = asyncio.Event()
        self.breaks_at = -1

    async def list_memories(self, agent: str, *, offset: int, limit: int) -> list[dict[str, Any]]:
        self.asked.append((offset, limit))
        self.under_way += 1
        self.side_by_side = max(self.side_by_side, self.under_way)
        if self.under_way > 1:
            self.two.set()
        try:
            await asyncio.sleep(0.001)
        finally:
            self.under_way -= 1
        if offset == self.breaks_at:
            raise RemoteError(Verdict.UNREACHABLE, "no")
        end = min(self.length, offset + min(limit, self.most))
        return [{"id": number} for number in range(offset, end)]


def pages_of(server: Server) -> PageFetcher:
    context = SimpleNamespace(
        remote=server,
        options=SyncOptions(backoff_base=0.001),
        runtime=SimpleNamespace(monotonic=time.monotonic, random=random.Random(0)),
    )
    return PageFetcher(context, SessionRef.of("session"))  # type: ignore[arg-type]


async def read(server: Server, width: int, limit: int = 100) -> list[int]:
    pages, found, offset = pages_of(server), list[int](), 0
    try:
        while ids := (await pages.fetch(PageRequest(offset, limit, limit, width))).ids:
            found += map(int, ids)
            offset += len(ids) if len(ids) < limit else stride(limit)
    finally:
        await pages.aclose()
    return found


@pytest.mark.parametrize("width", [1, 3, 8])
@pytest.mark.parametrize("most", [1000, 70])
async def test_a_listing_is_returned_in_order(width: int, most: int) -> None:
    """The order is kept however many pages are requested ahead, also with smaller pages than
    requested."""
    server = Server(1000, most)
    found = await read(server, width)
    assert sorted(set(found)) == list(range(1000))
    assert found == sorted(found) or most == 1000
    assert server.side_by_side <= min(width, SyncOptions().parallel_requests)


async def test_pages_are_requested_in_parallel() -> None:
    """The options limit the number of parallel requests, although more pages are held."""
    server = Server(5000)
    await read(server, 2 * SyncOptions().parallel_requests)
    assert server.side_by_side == SyncOptions().parallel_requests


async def test_few_pages_are_requested_beyond_the_end() -> None:
    """After a page that was not full, no further page is requested ahead."""
    server = Server(150)
    await read(server, 8)
    assert len(server.asked) <= 1 + 2 + SyncOptions().parallel_requests


async def test_a_failing_page_raises_in_its_turn() -> None:
    """Earlier pages are returned first, and no request is left running."""
    server = Server(1000)
    server.breaks_at = 160
    pages = pages_of(server)
    for offset in (0, 80):
        assert len((await pages.fetch(PageRequest(offset, 100, 100, 4))).ids) == 100
    with pytest.raises(RemoteError):
        await pages.fetch(PageRequest(160, 100, 100, 4))
    await pages.aclose()
    assert server.under_way == 0


async def test_a_cancelled_reader_leaves_no_request_running() -> None:
    """Cancelling and closing end every request."""
    server = Server(10_000)
    reading = asyncio.ensure_future(read(server, 8))
    await server.two.wait()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert server.under_way == 0
