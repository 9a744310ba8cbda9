"""The pages of one listing: requested in parallel, decoded on arrival, returned in order."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from typing import Any

import anyio

from cached_session.history.session_ref import SessionRef
from cached_session.remote.errors import RemoteError, Verdict
from cached_session.replication.backoff import exponential
from cached_session.replication.context import Context
from cached_session.replication.ingest import read_page
from cached_session.replication.listing_scan import Page, PageRequest, stride
from cached_session.replication.tasks import cancel_all

__all__ = ["PageFetcher", "fetch_page", "may_retry"]

TRIES = 3
"""The number of attempts for each page. The first page of a listing gets only one attempt, because
it shows whether the server can be reached."""
QUICK_SECONDS = 1.0
"""The maximum duration in seconds of a failed request that is retried. The server or its host has
reported such a quick failure. A slower failure is a timeout."""
PATIENCE_SECONDS = 5.0
"""The longest wait in seconds that the server can request before a page is retried. A longer wait
ends the listing."""

Memories = list[dict[str, Any]]


def may_retry(error: RemoteError, seconds: float) -> bool:
    """Return whether to repeat the request for a page that has failed after ``seconds``."""
    if error.verdict is Verdict.BUSY:
        return (error.retry_after or 0.0) <= PATIENCE_SECONDS
    return error.verdict is Verdict.UNREACHABLE and seconds < QUICK_SECONDS


async def fetch_page(
    context: Context, session: SessionRef, offset: int, limit: int, tries: int = TRIES
) -> Memories:
    """Fetch a page of a listing, with retries.

    The retries keep one failed page from ending a long listing.

    Raises:
        RemoteError: as `Remote.list_memories`.
    """
    clock = context.runtime.monotonic
    for failures in range(tries - 1):
        began = clock()
        try:
            found = await context.remote.list_memories(session.agent, offset=offset, limit=limit)
        except RemoteError as error:
            if not may_retry(error, clock() - began):
                raise
            if error.verdict is Verdict.BUSY:
                # Store the pause, so that other requests wait as well, not only this listing.
                pause = await context.pauses.record_failure(session.name, error)
            else:
                pause = exponential(failures, context.options, context.runtime.random)
            await anyio.sleep(pause)
            continue
        if failures:
            await context.pauses.record_success(session.name)
        return found
    return await context.remote.list_memories(session.agent, offset=offset, limit=limit)


class PageFetcher:
    """The pages of one session's listing. Call `aclose` when no more pages are needed."""

    def __init__(self, context: Context, session: SessionRef) -> None:
        self._context = context
        self._session = session
        self._has_answered = False
        """True if the server has returned a page."""
        self._limiter = anyio.CapacityLimiter(context.options.parallel_requests)
        self._decoding = anyio.Lock()
        """The lock that allows one page to be decoded at a time. Slices of several pages in a row
        would block the event loop for too long."""
        self._ahead: deque[tuple[tuple[int, int], asyncio.Future[Page | None]]] = deque()
        """The pages that are requested and not returned yet, each as (offset, limit) and future."""
        self._end = math.inf
        """The smallest offset of a page that was not full. Pages at larger offsets are not
        requested ahead."""

    async def fetch(self, request: PageRequest) -> Page:
        """Return a page, and request the following pages ahead.

        Up to ``request.width`` pages are requested. Their offsets assume that each page is full. If
        the next page requested ahead has another offset or limit, all pages requested ahead are
        discarded.

        Raises:
            RemoteError: as `Remote.list_memories`.
        """
        offset, limit = wanted = request.offset, request.limit
        if self._ahead and self._ahead[0][0] != wanted:
            await self.aclose()
        for number in range(request.width):
            if number >= len(self._ahead):
                self._ahead.append((wanted, asyncio.ensure_future(self._fetch_ahead(*wanted))))
            wanted = wanted[0] + stride(wanted[1]), request.following
        _, fetching = self._ahead.popleft()
        page = await fetching
        return await self._decode(await self._fetch(offset, limit)) if page is None else page

    async def _fetch_ahead(self, offset: int, limit: int) -> Page | None:
        async with self._limiter:
            if offset > self._end:
                return None
            found = await self._fetch(offset, limit)
        if len(found) < limit:
            self._end = min(self._end, offset)
        return await self._decode(found)

    async def _fetch(self, offset: int, limit: int) -> Memories:
        tries = TRIES if self._has_answered else 1
        found = await fetch_page(self._context, self._session, offset, limit, tries)
        self._has_answered = True
        return found

    async def _decode(self, memories: Memories) -> Page:
        async with self._decoding:
            return await read_page(memories, self._session.key)

    async def aclose(self) -> None:
        """Cancel the requests whose pages were not returned."""
        fetching = [future for _, future in self._ahead]
        self._ahead.clear()
        await cancel_all(fetching)
