"""Changes of a session as an async iterator.

Writes of this process wake the iterator immediately. To detect writes of other processes, the
iterator checks the version of the journal file every `watch_interval`, with one cheap query.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import anyio

from cached_session.engine.engine import Engine
from cached_session.errors import SessionClosed
from cached_session.journal.sqlite.tracked_connection import FileVersion
from cached_session.journal.tables.change_cursor import ChangeCursor
from cached_session.models import Change

__all__ = ["Changes"]


class Changes(AsyncIterator[Change]):
    """The changes of one session, in order; made by `CachedSession.changes`.

    Between two steps the iterator stores only the position of each reported item. It has no task,
    thread or connection, so a loop over it can be left at any time. A cancelled step, for example
    after a timeout, reports nothing and loses nothing: the next step returns the change instead.
    Only one task may use an iteration at a time. Several iterations of a session are independent.
    """

    def __init__(
        self,
        engine: Engine,
        session_id: str,
        ready: Callable[[], Awaitable[object]],
        start: ChangeCursor,
    ) -> None:
        """Prepare an iterator over the changes after the cursor ``start``.

        ``ready`` opens the journal, and raises `SessionClosed` if the session is closed.
        """
        self._engine = engine
        self._session_id = session_id
        self._ready = ready
        self._cursor = start
        self._is_before_opening = (
            start.positions is None and engine.journal.history.beginning is None
        )
        self._version: FileVersion | None = None
        self._unreported: list[Change] = []
        self._ended = False
        self._stepping = False

    async def __anext__(self) -> Change:
        """Wait for the next change and return it. Stop when the session is closed.

        Raises:
            JournalError: the journal cannot be read.
        """
        if self._stepping:
            raise RuntimeError("two tasks use one changes() iterator; call changes() in each task")
        self._stepping = True
        try:
            while not self._ended:
                # Register before the check, so that a later change or closing wakes this iteration.
                with self._engine.news.waiting(self._session_id) as news:
                    await self._ready()
                    await self._look()
                    if self._unreported:
                        return self._unreported.pop(0)
                    with anyio.move_on_after(self._engine.options.watch_interval):
                        await news.wait()
        except SessionClosed:
            self._ended = True
        finally:
            self._stepping = False
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """End the iteration. The call is optional, because the iterator holds no resources."""
        self._ended = True

    async def _look(self) -> None:
        engine, history = self._engine, self._engine.journal.history
        if self._is_before_opening:
            # All operations that were written or fetched since the opening count as new.
            await engine.open()
            self._cursor = replace(self._cursor, upto=history.beginning)
            self._is_before_opening = False
        # An open iteration counts as use of the session: without an event stream, the session is
        # polled at the active interval.
        engine.touch(self._session_id)
        version = await engine.journal.version()
        if self._unreported or (version == self._version and not self._cursor.is_behind):
            return
        found = await history.changes_after(self._session_id, self._cursor, engine.writer)
        # Assign the results together, after the last await: a cancelled step must change nothing.
        self._cursor, self._unreported = found
        self._version = version
