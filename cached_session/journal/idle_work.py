"""Work that the writing thread does while no write waits: indexing text, and checkpoints."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from typing import Any

from cached_session.journal.connections import Connections
from cached_session.journal.sqlite.db_errors import is_locked, is_transient
from cached_session.journal.tables import search_index

__all__ = ["FileMoved", "IdleWork", "Transact", "Uncommitted"]

log = logging.getLogger("cached_session.journal")

LOGGED_MOST = 8
"""Number of transactions after which an idle thread checkpoints the write-ahead log. The next
write then starts at the beginning of the log. While the log grows, each commit also stores the
new size of the log file, and takes twice as long (ext4: 0.33 ms instead of 0.13 ms)."""
UNINDEXED_MOST = 4096
"""Number of writes after which a thread that is never idle begins to index, so that the backlog
of the index stays bounded. From this number on, the thread indexes one slice for each
`search_index.SLICE` writes. Most bursts of writes end earlier, so indexing does not slow them down.
Indexing took a ninth of the time of writing one item to each of 1,000 sessions."""
AMBIGUOUS = (sqlite3.DatabaseError, sqlite3.OperationalError)
"""The exact types of the errors that SQLite raises for damage in the search index."""

Transact = Callable[[sqlite3.Connection, list[Callable[[sqlite3.Connection], Any]]], list[Any]]
"""A function that runs other functions in one transaction of the writing thread, and returns their
results."""


class FileMoved(Exception):
    """Another file has the journal's name now. The open file must not be written to."""


class Uncommitted(Exception):
    """SQLite refused the commit."""

    def __init__(self, error: sqlite3.Error) -> None:
        super().__init__(str(error))
        self.error = error


class IdleWork:
    """The idle work of one journal file. Used by its writing thread only."""

    def __init__(self, connections: Connections, transact: Transact) -> None:
        self._connections = connections
        self._transact = transact
        self._logged = 0
        """Number of transactions since the last checkpoint."""
        self._unindexed = 0
        """Number of writes that may not be indexed yet."""

    def record_writes(self, writes: int) -> None:
        """Count the writes of a committed transaction. Index a slice if `UNINDEXED_MOST` writes
        wait."""
        self._logged += 1
        self._unindexed += writes
        if self._unindexed >= UNINDEXED_MOST:
            self._try(self._index)

    def do_some(self) -> bool:
        """Index one slice, or checkpoint; return whether more work may be left."""
        return self._try(self._index) or self._try(self._checkpoint)

    def _try(self, work: Callable[[sqlite3.Connection], bool]) -> bool:
        try:
            conn = self._connections.writer
            if conn is None or self._connections.must_open():
                return False
            return work(conn)
        except FileMoved:
            return False
        except Exception as error:  # noqa: BLE001 - the writing thread must not end
            if is_locked(error):
                return True
            # No caller waits for this work. The next write fails in the same way and reports the
            # error.
            self._connections.suspect(error.error if isinstance(error, Uncommitted) else error)
            log.warning("idle work of the journal failed and waits for the next write: %s", error)
            return False

    def _index(self, conn: sqlite3.Connection) -> bool:
        waiting, self._unindexed = self._unindexed, 0
        with self._connections.writing:
            if not search_index.is_behind(conn):
                return False
        # Do not wait for a lock, because a write that arrives meanwhile would have to wait too.
        conn.execute("PRAGMA busy_timeout = 0")
        try:
            self._transact(conn, [search_index.slice_up])
        finally:
            conn.execute(f"PRAGMA busy_timeout = {self._connections.busy_ms}")
        self._logged += 1
        self._unindexed = max(0, waiting - search_index.SLICE)
        return True

    def _checkpoint(self, conn: sqlite3.Connection) -> bool:
        """Copy the write-ahead log into the file. Frames that a reader still uses stay in the log;
        a passive checkpoint does not wait for the reader."""
        if self._logged >= LOGGED_MOST:
            self._logged = 0
            with self._connections.writing:
                conn.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        return False

    def drop_index_after(self, error: BaseException) -> bool:
        """Switch off the search index if the index may have caused this error of a transaction. The
        failing statement does not show the cause, because SQLite writes index entries at the commit
        and at any statement that needs a savepoint. Return True if the index was switched off: the
        caller repeats the transaction without the index. If the transaction fails again, the
        journal's own tables have caused the error.
        """
        conn = self._connections.writer
        if conn is None or type(error) not in AMBIGUOUS or is_transient(error):
            return False
        try:
            if not search_index.is_kept(conn):
                return False
            self._transact(conn, [search_index.give_up])
        except (FileMoved, Uncommitted, sqlite3.Error) as inner:
            log.warning("cannot stop using the search index: %s", inner)
            return False
        self._logged += 1
        log.warning(search_index.GAVE_UP, error)
        return True
