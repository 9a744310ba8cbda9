"""Retention marks in the `sessions` table: the time and result of the last retention guard.

The retention guard of the replicator asks the server to keep a session, and writes the mark.
"""

from __future__ import annotations

import sqlite3

from cached_session.history.session_ref import SessionRef
from cached_session.journal.sqlite.runner import Runner
from cached_session.journal.tables.sessions import stored_id

__all__ = ["RetentionMarks", "guarded_ms", "is_unguarded", "record_guard"]


def guarded_ms(conn: sqlite3.Connection, session_id: str) -> int:
    """Return the time of the last retention guard of a session in Unix milliseconds; 0 for
    never."""
    row = conn.execute(
        "SELECT guarded_ms FROM sessions WHERE session_id = ?", (stored_id(session_id),)
    ).fetchone()
    return 0 if row is None else int(row[0])


def is_unguarded(conn: sqlite3.Connection, session_id: str) -> bool:
    """Return whether the last retention guard of a session failed to set its policy."""
    row = conn.execute(
        "SELECT 1 FROM sessions WHERE session_id = ? AND guard <> ''", (stored_id(session_id),)
    ).fetchone()
    return row is not None


def record_guard(conn: sqlite3.Connection, session_id: str, now_ms: int, unguarded: str) -> None:
    """Record the time of a retention guard, and the reason why it failed ('' if it succeeded)."""
    conn.execute(
        "UPDATE sessions SET guarded_ms = ?, guard = ? WHERE session_id = ?",
        (now_ms, unguarded, stored_id(session_id)),
    )


class RetentionMarks:
    """The retention marks of one journal."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    async def guarded_ms(self, session: SessionRef) -> int:
        """Return the time of the last retention guard of a session in Unix milliseconds; 0 for
        never."""
        return await self._runner.read(guarded_ms, session.name)

    async def is_unguarded(self, session: SessionRef) -> bool:
        """Return whether the last retention guard of a session failed to set its policy."""
        return await self._runner.read(is_unguarded, session.name)

    async def record(self, session: SessionRef, now_ms: int, unguarded: str) -> None:
        """Record the time of a retention guard, and the reason why it failed ('' if it
        succeeded)."""
        await self._runner.write(record_guard, session.name, now_ms, unguarded)
