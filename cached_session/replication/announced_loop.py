"""The task that fetches the memories which events have named, until each of them is here."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import anyio

from cached_session.errors import CachedSessionError, SessionClosed
from cached_session.history.session_ref import SessionRef
from cached_session.remote.errors import RemoteError
from cached_session.remote.ids import dot_of
from cached_session.replication.announced import Announced
from cached_session.replication.context import Context
from cached_session.replication.gaps import search_gaps
from cached_session.replication.ingest import apply_page, read_page
from cached_session.replication.pull import pull
from cached_session.replication.results import PullResult
from cached_session.replication.tasks import run_each

__all__ = ["AnnouncedFetcher", "fetch_announced"]

JOIN_SECONDS = 0.01
"""The time in seconds during which the events of a batch are collected before they are fetched."""
MOST_BY_ID = 4
"""The largest number of memories that are fetched by id. One listing fetches more memories."""


class AnnouncedFetcher:
    """Fetches the memories that events have named. Use it on the replicator's event loop."""

    def __init__(
        self,
        context: Context,
        *,
        on_pulled: Callable[[str], None],
        on_news: Callable[[], None],
        on_given_up: Callable[[str], None],
    ) -> None:
        """Prepare a fetcher.

        Args:
            on_pulled: called with the session id when the session may have changed.
            on_news: called when an event was the first to name a new operation.
            on_given_up: called with the session id when a memory has not arrived after the last
                attempt, or if too many memories are waiting.
        """
        self._context = context
        self._on_pulled = on_pulled
        self._on_news = on_news
        self._on_given_up = on_given_up
        self._announced = Announced()
        self._wake = anyio.Event()

    def add(self, session_id: str, memory: str) -> None:
        """Fetch a memory of an open session soon, because an event has named it."""
        if not self._announced.add(session_id, memory, self._context.runtime.monotonic()):
            self._on_given_up(session_id)
        self._wake.set()

    def is_waiting(self, session_id: str) -> bool:
        """Return whether a memory of a session that an event has named is not here yet."""
        return self._announced.is_waiting(session_id)

    def forget(self, session_id: str) -> None:
        """Stop fetching for a session that is no longer open."""
        self._announced.forget(session_id)

    async def run(self) -> None:
        """Fetch the memories that are due, for several sessions at a time, until cancelled."""
        clock, options = self._context.runtime.monotonic, self._context.options
        limiter = anyio.CapacityLimiter(options.parallel_sessions)
        fetching: set[str] = set()

        async def run_one(session_id: str) -> None:
            try:
                await anyio.sleep(JOIN_SECONDS)
                async with limiter:
                    await self._fetch(session_id)
            finally:
                fetching.discard(session_id)
                self._wake.set()

        async with anyio.create_task_group() as group:
            while True:
                due, nearest = self._announced.due(clock(), besides=fetching)
                for name in due:
                    fetching.add(name)
                    group.start_soon(run_one, name)
                # Read the clock again after one interval: it may advance otherwise than the loop's.
                wait = max(0.0, min(nearest - clock(), options.watch_interval))
                with anyio.move_on_after(None if nearest == math.inf else wait):
                    await self._wake.wait()
                if self._wake.is_set():
                    self._wake = anyio.Event()

    async def _fetch(self, session_id: str) -> None:
        """Make one attempt for the memories of a session, and plan the next attempt."""
        context, announced, clock = self._context, self._announced, self._context.runtime.monotonic
        memories = announced.take(session_id)
        paused = await context.pauses.wait_ms(session_id) / 1000
        if paused:
            announced.put_off(session_id, clock() + paused)
            return
        session, absent = SessionRef.of(session_id), list(memories)
        try:
            result, absent = await context.attempt(
                session_id, lambda: fetch_announced(context, session, memories)
            )
        except RemoteError:
            pass  # the pause is stored; the next attempt waits for its end
        except SessionClosed:
            raise
        except CachedSessionError as error:
            context.local_errors.record("pull", session_id, error)
        else:
            context.local_errors.clear("pull", session_id)
            announced.arrived(session_id, set(memories) - set(absent))
            if result.new:
                self._on_news()
            self._on_pulled(session_id)
        if announced.retry(session_id, absent, clock()):
            self._on_given_up(session_id)


async def fetch_announced(
    context: Context, session: SessionRef, memories: Sequence[str]
) -> tuple[PullResult, list[str]]:
    """Fetch memories of a session, and the other parts of their operations.

    Returns:
        The counts, and the memories that the server does not show yet.

    Raises:
        RemoteError: the first failure. The other memories are applied.
    """
    missing = await _missing(context, session, memories)
    if len(missing) > MOST_BY_ID:
        result = await pull(context, session, expected=len(missing))
        return result, await _missing(context, session, missing)
    if not missing:
        return PullResult(), []
    async with context.lock("pull", session.name):
        return await _fetch_by_id(context, session, missing)


async def _fetch_by_id(
    context: Context, session: SessionRef, memories: Collection[str]
) -> tuple[PullResult, list[str]]:
    result, found, absent = PullResult(), list[dict[str, Any]](), list[str]()

    async def fetch(memory: str) -> None:
        answer = await context.remote.fetch(session.agent, memory)
        if answer is None:
            absent.append(memory)
        else:
            found.append(answer)

    failure = await run_each(fetch, memories, context.options.parallel_requests)
    if found:
        await apply_page(context, session, await read_page(found, session.key), result)
        await search_gaps(context, session, result, all_gaps=False)
    if failure is not None:
        raise failure
    return result, absent


async def _missing(context: Context, session: SessionRef, memories: Sequence[str]) -> list[str]:
    """Return the memories whose operation the journal does not have."""
    dots = {memory: dot_of(memory, session.key) for memory in memories}
    named = {dot for dot in dots.values() if dot is not None}
    missing = await context.journal.known_operations.missing(session, named)
    return [memory for memory in memories if dots[memory] in missing]
