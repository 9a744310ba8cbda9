"""One journal, as its callers see it.

Every change is handed to the one thread that writes (`jobs`). Short reads run on the caller's own
thread over a second connection, because a tail read costs less than handing it over; long ones run
in threads of their own, off the event loop (`asides`).
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

from cached_session.errors import SessionClosed
from cached_session.journal.connect import MEMORY
from cached_session.journal.connections import Connections, end_transaction
from cached_session.journal.readers import Readers
from cached_session.journal.sqlite.awaiting import shielded
from cached_session.journal.sqlite.db_errors import FOREIGN_ERRORS, is_locked, journal_error
from cached_session.journal.sqlite.tracked_connection import Version, version_of
from cached_session.journal.tables.audit_state import Audits
from cached_session.journal.tables.claims import Claims
from cached_session.journal.tables.gaps import Gaps
from cached_session.journal.tables.inbox import Inbox
from cached_session.journal.tables.known_server import KnownServer
from cached_session.journal.tables.outbox import Outbox
from cached_session.journal.tables.parked_operations import ParkedOperations
from cached_session.journal.tables.pauses import PauseTable
from cached_session.journal.tables.pull_state import Pulls
from cached_session.journal.tables.retention_marks import RetentionMarks
from cached_session.journal.thread_pool import ThreadPool
from cached_session.journal.writer import Writer

__all__ = ["MEMORY", "Journal", "journal_error", "shielded"]

P = ParamSpec("P")
T = TypeVar("T")

READ_PATIENCE = 0.005
"""Seconds that a short read waits for another thread's short read before it is handed over."""


class Journal:
    """A journal file, opened by the first job and closed once.

    Safe to use from any thread and any event loop. In `threaded=False` mode every job runs at once
    on the calling thread: the same code without the thread, for the simulation.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        durability: str = "full",
        busy_timeout: float = 5.0,
        threaded: bool = True,
        search_index: bool = True,
        on_replaced: Callable[[], tuple[str, str]] = lambda: ("", ""),
    ) -> None:
        """A journal that is not open yet.

        ``on_replaced``: another file takes the place of this one (it was damaged, or somebody took
        it away); gives the writer id that must not be used any more, and the one that takes over.
        Called on the writing thread.
        """
        self.path = MEMORY if os.fspath(path) == MEMORY else os.fspath(Path(path))
        self._connections = Connections(
            self.path,
            durability=durability,
            busy_ms=int(busy_timeout * 1000),
            search_index=search_index,
            on_replaced=on_replaced,
        )
        self._threaded = threaded
        self._pool = ThreadPool()
        self._writer = Writer(self._connections, self._pool, threaded=threaded)
        self._readers = Readers(self._connections, self._writer, self._pool, threaded=threaded)
        self.inbox = Inbox(self)
        self.gaps = Gaps(self)
        self.pulls = Pulls(self)
        self.claims = Claims(self)
        self.audits = Audits(self)
        self.outbox = Outbox(self)
        self.parked = ParkedOperations(self)
        self.pauses = PauseTable(self)
        self.known_server = KnownServer(self)
        self.retention = RetentionMarks(self)

    def __repr__(self) -> str:
        return f"Journal({self.path!r})"

    @property
    def in_memory(self) -> bool:
        """Whether the journal vanishes with this object."""
        return self._connections.in_memory

    @property
    def is_open(self) -> bool:
        """Whether the file is open and still the one of its name."""
        file = self._connections
        return file.writer is not None and not self._writer.closed and not file.must_open()

    # -- writing ---------------------------------------------------------------------------------

    async def write(
        self,
        function: Callable[Concatenate[sqlite3.Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run a job in a transaction; what it returned, after its commit.

        If cancelled, the job's outcome is awaited before the cancellation goes on: the change is
        then entirely in or entirely out.

        Raises:
            JournalError: the journal could not be written; nothing of the job is stored.
        """
        return await shielded(self._writer.submit(_bound(function, *args, **kwargs)))

    async def maintain(
        self,
        function: Callable[Concatenate[sqlite3.Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run what SQLite does not allow inside a transaction, alone on the writing thread."""
        return await shielded(self._writer.submit(_bound(function, *args, **kwargs), alone=True))

    def write_soon(
        self,
        loop: asyncio.AbstractEventLoop,
        function: Callable[Concatenate[sqlite3.Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> asyncio.Future[T]:
        """Like `write`, without waiting: the future's result comes after the commit."""
        return self._writer.submit(_bound(function, *args, **kwargs), loop)

    def write_blocking(
        self,
        function: Callable[Concatenate[sqlite3.Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Like `write`, from a thread that runs no event loop."""
        return self._writer.run_blocking(_bound(function, *args, **kwargs))

    # -- reading ---------------------------------------------------------------------------------

    async def read(
        self,
        function: Callable[Concatenate[sqlite3.Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run a *short* query on the calling thread; sees every write that has returned.

        Where the file is locked (recovery after a crash) the query is handed to the writing thread.
        """
        if self._connections.must_open():
            await self._writer.open()
        try:
            return self._read(_bound(function, *args, **kwargs), wait=False)
        except _Busy:
            return await shielded(
                self._writer.submit(_bound(function, *args, **kwargs), alone=True)
            )

    def read_blocking(
        self,
        function: Callable[Concatenate[sqlite3.Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Like `read`, without an event loop. The journal must be open."""
        return self._read(_bound(function, *args, **kwargs), wait=True)

    def _read(self, run: Callable[[sqlite3.Connection], T], *, wait: bool) -> T:
        file = self._connections
        file.check_process()
        if wait and file.reader is not None and not self._writer.closed and file.must_open():
            self.open_blocking()
        if not file.reading.acquire(timeout=-1 if wait else READ_PATIENCE):
            raise _Busy
        try:
            # Nobody lets go of the connection while it is read over.
            conn = file.reader
            if self._writer.closed or conn is None:
                raise SessionClosed(f"the journal {self.path} is not open")
            end_transaction(conn)
            return run(conn)
        except FOREIGN_ERRORS as error:
            if not wait and is_locked(error):
                raise _Busy from error
            file.suspect(error)
            raise journal_error(error, self.path) from error
        finally:
            file.reading.release()

    def version(self) -> Version | None:
        """What changes with every commit of another process, and with each of this one that changes
        a history; None while a write is under way, or if it cannot be told. For a caller that has
        just asked whether the journal is open."""
        file = self._connections
        conn, lock = file.writer, file.writing
        if conn is None or os.getpid() != file.pid or not lock.acquire(blocking=False):
            return None
        try:
            return None if conn.in_transaction else version_of(conn)
        except sqlite3.Error:
            # Whoever reads next meets the same trouble, and says what it is.
            return None
        finally:
            lock.release()

    async def offload(self, work: Callable[..., T], *arguments: Any) -> T:
        """Do something that would hold the event loop up in a thread (or in turn)."""
        if not self._threaded:
            return work(*arguments)
        return await self._pool.run(work, *arguments)

    def read_aside(
        self,
        function: Callable[Concatenate[sqlite3.Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Awaitable[T]:
        """Run a query of some milliseconds in a thread, beside short reads and writes."""
        return self._readers.read(_bound(function, *args, **kwargs))

    def read_long(self, run: Callable[[sqlite3.Connection, Callable[[], bool]], T]) -> Awaitable[T]:
        """Run a query of any length in a thread, over a connection of its own. ``run`` is told
        whether anybody still waits for it; a caller that is cancelled waits until it has ended."""
        return self._readers.read_long(run)

    def rows(
        self, sql: str, parameters: tuple[Any, ...]
    ) -> AbstractAsyncContextManager[Callable[[int], Any]]:
        """A long result read in slices off the event loop: yields ``await fetch(most)``. The rows
        are of one snapshot."""
        return self._readers.rows(sql, parameters)

    def suspect(self, error: BaseException) -> None:
        """Somebody stumbled over what was read here: if the error may tell of damage, the next call
        looks into it. From any thread."""
        self._connections.suspect(error)

    # -- opening and closing ---------------------------------------------------------------------

    async def open(self) -> None:
        """Open the file, make or check its schema. Idempotent; the first job does it by itself.

        Raises:
            JournalError: it cannot be opened, or is no journal; JournalTooNew, JournalCorrupt.
        """
        await self._writer.open()

    def open_blocking(self) -> None:
        """`open` from a thread that runs no event loop."""
        self._writer.open_blocking()

    async def close(self) -> None:
        """Finish the jobs that were handed in, checkpoint and close. Idempotent."""
        await self._writer.close()

    def close_blocking(self) -> None:
        """`close` for the end of the process, where no event loop is left."""
        self._writer.close_blocking()


def _bound(
    function: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs
) -> Callable[[sqlite3.Connection], T]:
    """Return the function with all its arguments but the connection."""
    if not args and not kwargs:
        return cast("Callable[[sqlite3.Connection], T]", function)
    return lambda conn: function(conn, *args, **kwargs)


class _Busy(Exception):
    """A short read would have had to wait."""
