"""A connection that records which kinds of data its transaction has changed."""

from __future__ import annotations

import sqlite3

__all__ = ["TrackedConnection", "Version", "count_history_change", "count_queued", "version_of"]


class TrackedConnection(sqlite3.Connection):
    """A connection that counts the transactions in which it may have changed a history, and how
    often it may have put something into the outbox."""

    history_changes = 0
    queue_additions = 0
    _version_cursor: sqlite3.Cursor | None = None

    def data_version(self) -> int:
        """Changes with the commits of others."""
        # A cursor of its own: making one each time is a tenth of what the question costs.
        if self._version_cursor is None:
            self._version_cursor = self.cursor()
        (version,) = self._version_cursor.execute("PRAGMA data_version").fetchone()
        return int(version)


Version = tuple[sqlite3.Connection, int, int]
"""What the connection that writes knows of all histories: the first number changes with the commits
of others, the second with its own that concern one. Any other connection cannot tell whose a commit
was; and another one, after the file was opened again, counts anew."""


def version_of(conn: sqlite3.Connection) -> Version:
    """What this connection knows by now."""
    if isinstance(conn, TrackedConnection):
        return conn, conn.data_version(), conn.history_changes
    # Not a journal's own: whatever it has written counts.
    (others,) = conn.execute("PRAGMA data_version").fetchone()
    return conn, others, conn.total_changes


def count_history_change(conn: sqlite3.Connection) -> None:
    """This transaction changes a history, unless it is rolled back."""
    if isinstance(conn, TrackedConnection):
        conn.history_changes += 1


def count_queued(conn: sqlite3.Connection) -> None:
    """This transaction has something sent that was not waiting, unless it is rolled back."""
    if isinstance(conn, TrackedConnection):
        conn.queue_additions += 1
