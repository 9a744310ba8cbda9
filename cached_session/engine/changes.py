"""Following a session: wait until something may have changed, look, tell what has.

What this process does wakes those who follow at once; what other processes do to the file is found
by looking at it, `watch_interval` apart, which costs one question to SQLite.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable

import anyio

from cached_session.engine.engine import Engine
from cached_session.errors import SessionClosed
from cached_session.journal.tables import change_cursor
from cached_session.journal.tables.change_cursor import ChangeCursor
from cached_session.models import Change

__all__ = ["Changes"]

Version = tuple[int, int, int]
"""What a connection says of the whole file: nothing was committed while this stays the same."""


class Changes(AsyncIterator[Change]):
    """The changes of one session, one after the other; made by `CachedSession.changes`.

    Between two steps it holds nothing but the place of each item that it has told of: no task, no
    thread, no connection. So a loop may be left at any time, and a step that is cancelled (by a
    timeout, say) has told of nothing and loses nothing: the next one goes on where it was. For one
    task at a time; several iterations of a session do not know of each other.
    """

    def __init__(
        self,
        engine: Engine,
        session_id: str,
        ready: Callable[[], Awaitable[object]],
        start: ChangeCursor,
    ) -> None:
        """``ready`` opens the journal, and raises `SessionClosed` once nothing more is to come."""
        self._engine = engine
        self._session_id = session_id
        self._ready = ready
        self._view = start
        self._is_before_opening = start.positions is None and engine.beginning is None
        self._version: Version | None = None
        self._untold: list[Change] = []
        self._ended = False
        self._stepping = False

    async def __anext__(self) -> Change:
        """The next change, as soon as there is one; ends when the session is closed.

        Raises:
            JournalError: the journal cannot be read.
        """
        if self._stepping:
            raise RuntimeError("two tasks wait for the same iteration; call changes() for each")
        self._stepping = True
        try:
            while not self._ended:
                # Before anything else: what happens from here on wakes it, closing too.
                with self._engine.news.waiting(self._session_id) as news:
                    await self._ready()
                    await self._look()
                    if self._untold:
                        return self._untold.pop(0)
                    with anyio.move_on_after(self._engine.options.watch_interval):
                        await news.wait()
        except SessionClosed:
            self._ended = True
        finally:
            self._stepping = False
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """End the iteration. Not needed: it holds nothing."""
        self._ended = True

    async def _look(self) -> None:
        engine = self._engine
        if self._is_before_opening:
            # Whatever this process wrote or fetched since the journal was opened is news.
            await engine.open()
            self._view = ChangeCursor.since(self._view.file, engine.beginning)
            self._is_before_opening = False
        # Somebody watches: that is use, and is polled for at its pace where no events come.
        engine.touch(self._session_id)
        version = await engine.journal.read(lambda conn: _version(conn, engine.tail_cache.file))
        if self._untold or (version == self._version and not self._view.is_behind):
            return
        found = await engine.journal.read_aside(
            lambda conn: change_cursor.advance(
                conn, self._session_id, self._view, engine.tail_cache.file, engine.writer
            )
        )
        # Both together, and only now: a step that was cancelled before this has not happened.
        self._view, self._untold = found
        self._version = version


def _version(conn: sqlite3.Connection, file: int) -> Version:
    (changed,) = conn.execute("PRAGMA data_version").fetchone()
    # `data_version` tells of other connections; in memory there is only this one.
    return file, changed, conn.total_changes
