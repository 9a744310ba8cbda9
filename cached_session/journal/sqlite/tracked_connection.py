"""A connection that counts its changes, so that caches can detect that they are out of date."""

from __future__ import annotations

import itertools
import sqlite3
from typing import Any, NamedTuple

__all__ = [
    "FileVersion",
    "TrackedConnection",
    "Version",
    "count_history_change",
    "count_queued",
    "data_version",
    "file_version",
    "queued",
    "version_of",
]

DATA_VERSION = "PRAGMA data_version"

_serials = itertools.count(1)


class TrackedConnection(sqlite3.Connection):
    """A connection of a journal.

    The connection counts the transactions that may have changed a history, and the transactions
    that may have added to the outbox. A transaction that is rolled back may have been counted.
    """

    history_changes = 0
    queue_additions = 0
    _version_cursor: sqlite3.Cursor | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.serial = next(_serials)
        """The serial number of this connection, unique in the process."""

    def data_version(self) -> int:
        """Return a number that changes when another connection commits to the file."""
        # Reuse the cursor: to create one for each call would take a tenth of the query's time.
        cursor = self._version_cursor
        if cursor is None:
            cursor = self._version_cursor = self.cursor()
        (version,) = cursor.execute(DATA_VERSION).fetchone()
        return int(version)


Version = tuple[sqlite3.Connection, int, int]
"""The state of all histories, as the writing connection knows it. The fields are the connection,
`data_version` (which changes with commits of other connections), and the number of the connection's
own transactions that changed a history. States of different connections cannot be compared: another
connection does not know which connection made a commit, and a new connection counts from zero."""


class FileVersion(NamedTuple):
    """The state of the whole file, as one connection knows it. Every commit changes the state."""

    connection: int
    """The serial number of the connection."""
    others: int
    """The `data_version`, which changes with commits of other connections."""
    own: int
    """The number of rows that this connection has changed; constant for a connection that only
    reads."""


def data_version(conn: sqlite3.Connection) -> int:
    """Return a number that changes when another connection commits to the file."""
    if isinstance(conn, TrackedConnection):
        return conn.data_version()
    (version,) = conn.execute(DATA_VERSION).fetchone()
    return int(version)


def version_of(conn: sqlite3.Connection) -> Version:
    """Return the state of all histories as the writing connection knows it."""
    if isinstance(conn, TrackedConnection):
        return conn, conn.data_version(), conn.history_changes
    # A plain connection does not count changes of histories. Count all rows that it has changed.
    return conn, data_version(conn), conn.total_changes


def file_version(conn: sqlite3.Connection) -> FileVersion:
    """Return a value that changes with every commit to the file, by this or another connection."""
    serial = conn.serial if isinstance(conn, TrackedConnection) else id(conn)
    return FileVersion(serial, data_version(conn), conn.total_changes)


def count_history_change(conn: sqlite3.Connection) -> None:
    """Record that this transaction changes a history."""
    if isinstance(conn, TrackedConnection):
        conn.history_changes += 1


def count_queued(conn: sqlite3.Connection) -> None:
    """Record that this transaction adds to the outbox."""
    if isinstance(conn, TrackedConnection):
        conn.queue_additions += 1


def queued(conn: sqlite3.Connection) -> int:
    """Return the number of transactions of this connection that may have added to the outbox."""
    return conn.queue_additions if isinstance(conn, TrackedConnection) else 0
