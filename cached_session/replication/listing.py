"""Pages of one listing: asked for side by side, taken apart as they come, given out in order."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from typing import Any

import anyio

from cached_session.history.ids import agent_id, session_key
from cached_session.remote.errors import RemoteError, Verdict
from cached_session.replication.backoff import exponential
from cached_session.replication.context import Context
from cached_session.replication.ingest import Page, read_page
from cached_session.replication.tasks import cancel_all

__all__ = ["Pages", "page", "step"]

OVERLAP = 20
"""Rows that neighbouring pages share: a delete between two requests moves rows across the edge."""
TRIES = 3
"""Of a page, once the server has given one: before that, asking tells whether it is there."""
QUICK = 1.0
"""Seconds within which a failure is one that the server told, or its host."""
PATIENCE = 5.0
"""Seconds that a listing waits in its middle because the server asks it to."""

Memories = list[dict[str, Any]]


def step(limit: int) -> int:
    """From one page to the next, if it is full."""
    return limit - min(OVERLAP, limit // 2)


async def page(
    context: Context, session_id: str, offset: int, limit: int, tries: int = TRIES
) -> Memories:
    """A page of a listing, asked for again after a pause where the server stumbles or asks for a
    moment: a listing that got so far should not have to begin anew.

    Raises:
        RemoteError: as `Remote.page` does.
    """
    agent, clock = agent_id(session_id), context.runtime.monotonic
    for failures in range(tries - 1):
        began = clock()
        try:
            found = await context.remote.list_memories(agent, offset=offset, limit=limit)
        except RemoteError as error:
            if error.verdict is Verdict.BUSY and (error.retry_after or 0.0) <= PATIENCE:
                # Everybody waits, not this listing alone.
                pause = await context.pauses.record_failure(session_id, error)
            elif error.verdict is Verdict.UNREACHABLE and clock() - began < QUICK:
                pause = exponential(failures, context.options, context.runtime.random)
            else:
                raise
            await anyio.sleep(pause)
            continue
        if failures:
            await context.pauses.record_success(session_id)
        return found
    return await context.remote.list_memories(agent, offset=offset, limit=limit)


class Pages:
    """Of one session. `aclose` when no more is wanted."""

    def __init__(self, context: Context, session_id: str) -> None:
        self._context = context
        self._session_id = session_id
        self._key = session_key(session_id)
        self._is_met = False
        self._limiter = anyio.CapacityLimiter(context.options.parallel_requests)
        self._reading = anyio.Lock()
        """One page at a time is taken apart: slices of several would hold the loop up together."""
        self._asked: deque[tuple[tuple[int, int], asyncio.Future[Page | None]]] = deque()
        self._end = math.inf
        """The offset of a page that was not full: what lies beyond it is not asked for ahead."""

    async def page(self, offset: int, limit: int, *, following: int, width: int) -> Page:
        """This page; up to ``width`` pages from it on are asked for, those after it with the limit
        ``following``, as if all were full. What then turns out not to be what follows is asked for
        again.

        Raises:
            RemoteError: as `Remote.page` does.
        """
        if self._asked and self._asked[0][0] != (offset, limit):
            await self.aclose()
        wanted = offset, limit
        for number in range(width):
            if number >= len(self._asked):
                self._asked.append((wanted, asyncio.ensure_future(self._ask(*wanted))))
            wanted = wanted[0] + step(wanted[1]), following
        _, asking = self._asked.popleft()
        found = await asking
        return await self._read(await self._listed(offset, limit)) if found is None else found

    async def _ask(self, offset: int, limit: int) -> Page | None:
        async with self._limiter:
            if offset > self._end:
                return None
            found = await self._listed(offset, limit)
        if len(found) < limit:
            self._end = min(self._end, offset)
        return await self._read(found)

    async def _listed(self, offset: int, limit: int) -> Memories:
        found = await page(
            self._context, self._session_id, offset, limit, TRIES if self._is_met else 1
        )
        self._is_met = True
        return found

    async def _read(self, memories: Memories) -> Page:
        async with self._reading:
            return await read_page(memories, self._key)

    async def aclose(self) -> None:
        """Give up what was asked for and not taken."""
        asked = [asking for _, asking in self._asked]
        self._asked.clear()
        await cancel_all(asked)
