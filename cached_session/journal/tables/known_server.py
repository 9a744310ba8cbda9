"""The server that the acknowledgements in the journal come from: one row of the meta table.

Written by the replicator before its first request.
"""

from __future__ import annotations

import sqlite3

from cached_session.journal.sqlite.runner import Runner
from cached_session.journal.tables.meta import write_meta
from cached_session.journal.tables.sessions import forget_server

__all__ = ["KnownServer", "known_server", "switch_server"]


def known_server(conn: sqlite3.Connection) -> str | None:
    """Return the URL of the server that the journal knows; None before the first contact."""
    row = conn.execute("SELECT value FROM meta WHERE key = 'server'").fetchone()
    return None if row is None else row[0]


def switch_server(conn: sqlite3.Connection, server: str) -> str | None:
    """Record the server that acknowledgements come from; return the URL of the one it replaces.

    Everything that another server has acknowledged goes back to the outbox.
    """
    # Read inside the transaction: several tasks may arrive here together, and one makes the switch.
    before = known_server(conn)
    if before == server:
        return None
    if before is not None:
        forget_server(conn)
    write_meta(conn, server=server)
    return before


class KnownServer:
    """The server that one journal's acknowledgements come from."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    async def url(self) -> str | None:
        """Return the URL; None before the first contact."""
        return await self._runner.read(known_server)

    async def switch(self, server: str) -> str | None:
        """Record another server; return the URL of the one it replaces, if any."""
        return await self._runner.write(switch_server, server)
