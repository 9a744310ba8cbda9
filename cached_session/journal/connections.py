"""The journal file and this process's connections to it.

Another file may replace the journal while a session is open: recovery replaces a damaged file, and
a user may move a file away. All committed writes are copied to the new file.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from cached_session import fork_safety
from cached_session.errors import CachedSessionError, JournalError
from cached_session.journal.open_connection import MEMORY, connect, create_private
from cached_session.journal.recovery import recover, replace_file
from cached_session.journal.recovery.copy_rows import WriterIds
from cached_session.journal.sqlite import file_identity
from cached_session.journal.sqlite.db_errors import FOREIGN_ERRORS, is_damage
from cached_session.journal.sqlite.tracked_connection import Version, version_of
from cached_session.journal.tables import schema

__all__ = ["Connections", "end_transaction"]

log = logging.getLogger("cached_session.journal")

OPEN_PAUSE_MS = 250
"""Maximum milliseconds that a short read waits for a lock on the caller's thread. After this
time the writing thread runs the read. SQLite locks out readers only while it recovers a write-ahead
log after a crash."""


class _Opened(NamedTuple):
    """The connections to one file, and the identity of the file and its logs."""

    writer: sqlite3.Connection
    reader: sqlite3.Connection
    file: file_identity.FileId | None
    logs: dict[str, file_identity.FileId]


class Connections:
    """One connection for writes, one for short reads, one for reads in threads.

    Only the writing thread replaces and closes these connections. The writing thread also opens
    the first two. The thread that first reads from the third connection opens it.
    """

    def __init__(
        self,
        path: str,
        *,
        durability: str,
        busy_ms: int,
        search_index: bool,
        on_replaced: Callable[[], tuple[str, str]],
    ) -> None:
        self.path = path
        self.in_memory = path == MEMORY
        self._durability = durability
        self.busy_ms = busy_ms
        self._search_index = search_index
        self._on_replaced = on_replaced
        self.pid = os.getpid()
        """Id of the process that has opened the connections."""
        self.reading = threading.Lock()
        """Lock that is held while `reader` is in use."""
        # A journal in memory has one connection for reads and writes. The lock prevents reads
        # during a transaction.
        self.writing = self.reading if self.in_memory else threading.Lock()
        """Lock that is held while `writer` is in use."""
        self.asides = threading.Lock()
        """Lock that is held while the connection that `aside` returns is in use."""
        fork_safety.wait_for(self, *dict.fromkeys((self.writing, self.reading, self.asides)))
        self.writer: sqlite3.Connection | None = None
        self.reader: sqlite3.Connection | None = None
        self._aside: sqlite3.Connection | None = None
        self._id: file_identity.FileId | None = None
        self._logs: dict[str, file_identity.FileId] = {}
        """Identities of the file's write-ahead log and of the log's index."""
        self._left: list[Path] = []
        """New paths of the logs that were left behind when the file was moved away. These logs are
        deleted when their content has been copied."""
        self.suspicion: str | None = None
        """Message of an error that damage in the file may have caused; None if there was no such
        error. The file is checked before the next job."""
        self._stale = False
        """True if a connection has become read-only. SQLite never makes such a connection
        writable again, so the connection is replaced before the next job."""

    def check_process(self) -> None:
        """Refuse connections that a fork has inherited. Call this method before you acquire a lock,
        because a thread that does not exist in the child may hold the lock.

        Raises:
            JournalError: the connections are those of the parent.
        """
        if os.getpid() != self.pid:
            raise JournalError(
                f"the journal {self.path} was opened before this process was forked; SQLite "
                "connections do not survive a fork. Open a new session in the child"
            )

    def aside(self) -> sqlite3.Connection:
        """Return the connection for reads in threads. The caller holds `asides`."""
        if self._aside is None:
            self._aside = self._connect(self.busy_ms)
            self._aside.execute("PRAGMA query_only = ON")
        return self._aside

    def current(self) -> sqlite3.Connection:
        """Return the writing connection to the file that has the journal's name now. If necessary,
        first open or recover the file, or copy the writes of the moved file to it."""
        if self.writer is not None and not self.must_open():
            return self.writer
        if self.writer is not None and self.is_moved():
            return self._follow(self.writer)
        if self.suspicion is not None or (
            not self.in_memory and replace_file.is_interrupted(self.path)
        ):
            self._recover(self.suspicion or "a process ended while it recovered the journal")
        self._release()
        self._stale = False
        try:
            return self._adopt(self._opened())
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            if self.in_memory or not is_damage(error):
                raise
            self._recover(str(error))
        return self._adopt(self._opened())

    def _adopt(self, opened: _Opened) -> sqlite3.Connection:
        self.writer, self.reader, self._id, self._logs = opened
        return opened.writer

    def _opened(self) -> _Opened:
        if self.in_memory:
            writer = self._connect(self.busy_ms)
            schema.prepare(writer, self.path, search_index=self._search_index)
            return _Opened(writer, writer, None, {})
        while True:
            file_identity.move_stray_logs(self.path, self.busy_ms / 1000)
            create_private(self.path)
            file = file_identity.file_id(self.path)
            opened: list[sqlite3.Connection] = []
            try:
                opened.append(self._connect(self.busy_ms))
                schema.prepare(opened[0], self.path, search_index=self._search_index)
                opened.append(self._connect(OPEN_PAUSE_MS))
                opened[1].execute("PRAGMA query_only = ON")
                logs = file_identity.find_logs(self.path)
            except BaseException:
                _drop(opened, file_identity.is_replaced(self.path, file))
                raise
            if file is not None and file_identity.file_id(self.path) == file:
                return _Opened(opened[0], opened[1], file, logs)
            # Another process has just replaced the file.
            _drop(opened, True)

    def _connect(self, busy_ms: int, path: str | None = None) -> sqlite3.Connection:
        return connect(path or self.path, busy_ms, self._durability)

    @property
    def is_ready(self) -> bool:
        """True if the file is open and no error has to be checked. This property does not check
        whether another file has the name now."""
        return self.reader is not None and self.suspicion is None and not self._stale

    def must_open(self) -> bool:
        """Return whether `current` must open the file, for the first time or again."""
        # Hot path: `is_ready`, inlined.
        if self.reader is None or self.suspicion is not None or self._stale:
            return True
        return self._id is not None and file_identity.file_id(self.path) != self._id

    def is_moved(self) -> bool:
        """Return whether another file, or no file, has the journal's name now. The check takes
        one system call."""
        return self._id is not None and file_identity.file_id(self.path) != self._id

    def version(self) -> Version | None:
        """Return the state of all histories; None while a write is running, or if the state is
        unknown. The method never waits. The caller has just checked that the journal is open.
        """
        conn, lock = self.writer, self.writing
        if conn is None or os.getpid() != self.pid or not lock.acquire(blocking=False):
            return None
        try:
            return None if conn.in_transaction else version_of(conn)
        except sqlite3.Error:
            # The next read fails in the same way and reports it.
            return None
        finally:
            lock.release()

    def suspect(self, error: BaseException) -> None:
        """Make the next call of `current` check the file, if damage may have caused this error."""
        if self.in_memory:
            return
        if is_damage(error):
            self.suspicion = str(error)
        elif isinstance(error, sqlite3.Error) and "readonly" in str(error):
            self._stale = True

    def _recover(self, why: str) -> None:
        """Recover the damaged file, unless a check finds that the file is intact."""
        retired, writer = self._on_replaced()
        report = recover.recover_file(
            self.path,
            why,
            self.busy_ms / 1000,
            lambda path: self._connect(self.busy_ms, path),
            WriterIds(retired, writer),
            self.writer,
        )
        self.suspicion = None
        if report is not None:
            log.error("the journal %s was damaged. %s", self.path, report.summary())

    def _follow(self, old: sqlite3.Connection) -> sqlite3.Connection:
        """Switch to the file that has the journal's name now, because the open file was moved or
        replaced. All committed writes are copied from the open file. While the new file cannot be
        opened, calls fail and the old connection stays open.
        """
        # Copy the log into the moved file, so that the file is complete even if the next step
        # fails.
        with suppress(sqlite3.Error):
            old.execute("PRAGMA wal_checkpoint(PASSIVE)")
        self._left += file_identity.move_stray_logs(self.path, self.busy_ms / 1000, self._logs)
        opened = self._opened()
        try:
            retired, fresh = self._on_replaced()
            report = recover.copy_to_replacement(
                old, opened.writer, self._id, self.path, WriterIds(retired, fresh)
            )
        except BaseException:
            _drop([opened.writer, opened.reader], False)
            raise
        log.error("the journal %s was replaced while it was open. %s", self.path, report.summary())
        self._release()
        for left in self._left:
            left.unlink(missing_ok=True)
        self._left.clear()
        return self._adopt(opened)

    def _release(self) -> None:
        """Close every connection."""
        with self.reading, self.asides:
            conns = {self._aside, self.reader, self.writer} - {None}
            moved = self._id is not None and file_identity.is_replaced(self.path, self._id)
            self._aside = self.reader = self.writer = self._id = None
            _drop([conn for conn in conns if conn is not None], moved)

    def close(self) -> None:
        """Close every connection. If the file was moved away or is damaged, replace or recover it
        first. A program that ends at its first error makes no later call that would do this.
        """
        try:
            moved = self.writer is not None and self.is_moved()
        except JournalError as error:
            # The next opening reports the error. All committed writes are in the file.
            log.warning("close the journal without checking its file: %s", error)
            moved = False
        if moved or (self.writer is not None and self.suspicion is not None):
            try:
                self.current()
            except (CachedSessionError, *FOREIGN_ERRORS) as error:
                log.error(
                    "the journal %s was moved away and cannot be created again (%s): its unsent "
                    "operations are lost"
                    if moved
                    else "the journal %s is damaged and cannot be recovered now: %s",
                    self.path,
                    error,
                )
        self._release()


def _drop(conns: list[sqlite3.Connection], moved: bool) -> None:
    for conn in conns:
        if moved:
            replace_file.never_close(conn)
        else:
            conn.close()


def end_transaction(conn: sqlite3.Connection) -> None:
    """Roll back a transaction whose commit failed with an I/O error. The callers
    of its writes received the error. No other transaction can begin while this one is open."""
    if conn.in_transaction:
        conn.execute("ROLLBACK")
