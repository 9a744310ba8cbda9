"""The pages of one listing, asked for side by side and handed out in order."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from typing import Any

import anyio

from cached_session.replication.ahead import give_up
from cached_session.replication.link import Link

__all__ = ["Pages", "step"]

OVERLAP = 20
"""Rows that neighbouring pages share: a delete between two requests moves rows across the edge."""

Memories = list[dict[str, Any]]


def step(limit: int) -> int:
    """From one page to the next, if it is full."""
    return limit - min(OVERLAP, limit // 2)


class Pages:
    """Of one agent. `aclose` when no more is wanted."""

    def __init__(self, link: Link, agent: str) -> None:
        self._link = link
        self._agent = agent
        self._limiter = anyio.CapacityLimiter(link.options.parallel_requests)
        self._asked: deque[tuple[tuple[int, int], asyncio.Future[Memories | None]]] = deque()
        self._end = math.inf
        """The offset of a page that was not full: what lies beyond it is not asked for ahead."""

    async def page(self, offset: int, limit: int, *, following: int, width: int) -> Memories:
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
        return await self._page(offset, limit) if found is None else found

    async def _ask(self, offset: int, limit: int) -> Memories | None:
        async with self._limiter:
            if offset > self._end:
                return None
            found = await self._page(offset, limit)
        if len(found) < limit:
            self._end = min(self._end, offset)
        return found

    async def _page(self, offset: int, limit: int) -> Memories:
        return await self._link.remote.page(self._agent, offset=offset, limit=limit)

    async def aclose(self) -> None:
        """Give up what was asked for and not taken."""
        asked = [asking for _, asking in self._asked]
        self._asked.clear()
        await give_up(asked)
