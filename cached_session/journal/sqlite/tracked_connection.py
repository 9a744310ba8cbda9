"""A connection that counts changes to histories and to the outbox, and the version of histories."""

from __future__ import annotations

import sqlite3

__all__ = ["TrackedConnection", "Version", "count_history_change", "count_queued", "version_of"]


class TrackedConnection(sqlite3.Connection):
    """A connection with two counters, which a rollback does not reset.

    ``history_changes`` counts the transactions that may have changed a history, and
    ``queue_additions`` how often operations may have been added to the outbox.
    """

    history_changes = 0
    queue_additions = 0
    _version_cursor: sqlite3.Cursor | None = None

    def data_version(self) -> int:
        """Return a number that changes when another connection commits."""
        # One cursor for all calls: to create it each time takes a tenth of the query's time.
        if self._version_cursor is None:
            self._version_cursor = self.cursor()
        (version,) = self._version_cursor.execute("PRAGMA data_version").fetchone()
        return int(version)


Version = tuple[sqlite3.Connection, int, int]
"""The version of all histories as the writing connection sees it: the connection, a number that
changes with commits of other connections, and one that changes with its own changes to histories.

Versions of two connections are never equal, because a connection cannot tell its own commits from
those of a third one. After the file is opened again, the counters start again.
"""


def version_of(conn: sqlite3.Connection) -> Version:
    """Return the current version of all histories."""
    if isinstance(conn, TrackedConnection):
        return conn, conn.data_version(), conn.history_changes
    # Any other connection has no counter of changes to histories: every row that it wrote counts.
    (others,) = conn.execute("PRAGMA data_version").fetchone()
    return conn, others, conn.total_changes


def count_history_change(conn: sqlite3.Connection) -> None:
    """Record that the transaction changes a history. The count stays even after a rollback."""
    if isinstance(conn, TrackedConnection):
        conn.history_changes += 1


def count_queued(conn: sqlite3.Connection) -> None:
    """Record that the transaction adds to the outbox. The count stays even after a rollback."""
    if isinstance(conn, TrackedConnection):
        conn.queue_additions += 1
