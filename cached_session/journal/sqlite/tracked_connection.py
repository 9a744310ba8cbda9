"""A connection that records which kinds of data its transaction has changed."""

from __future__ import annotations

import sqlite3

__all__ = ["Connection", "Version", "changing", "queueing", "version_of"]


class Connection(sqlite3.Connection):
    """A connection that counts the transactions in which it may have changed a history, and how
    often it may have put something into the outbox."""

    histories = 0
    queued = 0
    _asking: sqlite3.Cursor | None = None

    def data_version(self) -> int:
        """Changes with the commits of others."""
        # A cursor of its own: making one each time is a tenth of what the question costs.
        if self._asking is None:
            self._asking = self.cursor()
        (version,) = self._asking.execute("PRAGMA data_version").fetchone()
        return int(version)


Version = tuple[sqlite3.Connection, int, int]
"""What the connection that writes knows of all histories: the first number changes with the commits
of others, the second with its own that concern one. Any other connection cannot tell whose a commit
was; and another one, after the file was opened again, counts anew."""


def version_of(conn: sqlite3.Connection) -> Version:
    """What this connection knows by now."""
    if isinstance(conn, Connection):
        return conn, conn.data_version(), conn.histories
    # Not a journal's own: whatever it has written counts.
    (others,) = conn.execute("PRAGMA data_version").fetchone()
    return conn, others, conn.total_changes


def changing(conn: sqlite3.Connection) -> None:
    """This transaction changes a history, unless it is rolled back."""
    if isinstance(conn, Connection):
        conn.histories += 1


def queueing(conn: sqlite3.Connection) -> None:
    """This transaction has something sent that was not waiting, unless it is rolled back."""
    if isinstance(conn, Connection):
        conn.queued += 1
