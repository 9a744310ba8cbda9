"""The row of the `meta` table with the URL of the server that acknowledged the operations.

The replicator writes this row before its first request.
"""

from __future__ import annotations

import sqlite3

from cached_session.journal.sqlite.runner import Runner
from cached_session.journal.sqlite.tracked_connection import count_queued
from cached_session.journal.tables.meta import write_meta
from cached_session.journal.tables.outbox import requeue
from cached_session.journal.tables.states import PARKED, SENT

__all__ = [
    "KnownServer",
    "answered_server",
    "known_server",
    "other_server",
    "switch_server",
]


def known_server(conn: sqlite3.Connection) -> str | None:
    """Return the URL of the server that the journal knows; None before the first request."""
    row = conn.execute("SELECT value FROM meta WHERE key = 'server'").fetchone()
    return None if row is None else row[0]


def answered_server(conn: sqlite3.Connection) -> str | None:
    """Return the URL of the server that the journal knows and that has answered a request; None if
    there is none. A server that has never answered may be a mistyped address."""
    row = conn.execute("SELECT 1 FROM meta WHERE key = 'last_success_ms'").fetchone()
    return None if row is None else known_server(conn)


def switch_server(conn: sqlite3.Connection, server: str, *, move: bool = False) -> str | None:
    """Record the server's URL; return the other URL that the journal knows, or None if there is no
    other URL.

    The URL of a server that has answered is replaced only with ``move``. The operations that the
    earlier server has acknowledged or parked are queued again.
    """
    # Read inside the transaction: several tasks may call this function at once, and only one of
    # them may switch the server.
    before = known_server(conn)
    if before == server:
        return None
    if before is not None:
        if not move and answered_server(conn) is not None:
            return before
        _forget_server(conn)
    write_meta(conn, server=server)
    return before


def _forget_server(conn: sqlite3.Connection) -> None:
    """Reset the synchronization state. All operations are sent again, and all memories are listed
    again."""
    requeue(conn, "1", ())
    conn.execute(f"UPDATE waiting SET state = {SENT}, error = NULL WHERE state = {PARKED}")
    conn.execute("DELETE FROM settled")
    conn.execute("DELETE FROM claims")
    conn.execute("UPDATE sessions SET hydrated = 0, ground = 0, guarded_ms = 0, guard = ''")
    conn.execute("DELETE FROM gates")
    count_queued(conn)


class KnownServer:
    """The server that acknowledged the operations of a journal."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    async def url(self) -> str | None:
        """Return the URL of the server that the journal knows; None before the first request."""
        return await self._runner.read(known_server)

    async def answered(self) -> str | None:
        """Return the URL of the server that has answered; see `answered_server`."""
        return await self._runner.read(answered_server)

    async def switch(self, server: str, *, move: bool) -> str | None:
        """Record the server's URL. See `switch_server`."""
        return await self._runner.write(switch_server, server, move=move)


def other_server(journal: str, known: str, server: str) -> str:
    """Return the message for a journal that syncs with a server other than ``server``."""
    return (
        f"the journal {journal} syncs with {known}, and not with {server}: nothing was sent; use "
        "another journal for this server, or pass move=True (--move on the command line) to send "
        "everything in the journal to it"
    )
