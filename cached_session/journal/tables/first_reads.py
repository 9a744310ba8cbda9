"""First reads: the decision whether the first read of a session waits for the server, and the
record that it has waited."""

from __future__ import annotations

import asyncio
import sqlite3
from typing import NamedTuple

from cached_session.journal.sqlite.runner import Runner
from cached_session.journal.tables.item_rows import is_whole_tail
from cached_session.journal.tables.pauses import pause_of
from cached_session.journal.tables.sessions import session_row, stored_id

__all__ = ["FirstRead", "FirstReads", "first_read_of", "record_first_read"]


class FirstRead(NamedTuple):
    """The state of a session's first read."""

    items: int
    """The number of the session's items in the journal."""
    is_done: bool
    """True if a read need not wait for the server."""


def first_read_of(conn: sqlite3.Connection, session_id: str, limit: int | None) -> FirstRead:
    """Return the state of a session's first read of the latest ``limit`` items.

    The first read is done if an earlier read has waited for the server, if the session or the
    server has a pause, or if the journal has the requested items without a gap.
    """
    row = session_row(conn, session_id)
    number, items, met, hydrated, _ = row or (0, 0, 0, 0, 0)
    is_done = bool(met) or any(pause_of(conn, of) is not None for of in (None, session_id))
    if not is_done and not hydrated and limit is not None and items >= limit and row is not None:
        is_done = is_whole_tail(conn, number, limit)
    return FirstRead(items, is_done)


def record_first_read(conn: sqlite3.Connection, session_id: str, now_ms: int) -> None:
    """Record that the first read of a session has waited for the server."""
    conn.execute(
        "INSERT INTO sessions (session_id, met, created_ms) VALUES (?, 1, ?) "
        "ON CONFLICT DO UPDATE SET met = 1",
        (stored_id(session_id), now_ms),
    )


class FirstReads:
    """The first reads of a journal's sessions."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    async def of(self, session_id: str, limit: int | None) -> FirstRead:
        """Return the state of a session's first read of the latest ``limit`` items."""
        return await self._runner.read(first_read_of, session_id, limit)

    async def record(self, session_id: str, now_ms: int) -> None:
        """Record that the first read of a session has waited for the server."""
        await self._runner.write(record_first_read, session_id, now_ms)

    def record_soon(self, session_id: str, now_ms: int) -> asyncio.Future[None]:
        """Start to record the first read of a session; return the future of the write."""
        loop = asyncio.get_running_loop()
        return self._runner.write_soon(loop, record_first_read, session_id, now_ms)
