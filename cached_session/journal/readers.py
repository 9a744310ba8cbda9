"""Reads of the journal: short ones on the caller's thread, longer ones in threads.

A short read runs on the calling thread, because a handover to another thread costs more than
reading a tail. A read of some milliseconds (*aside*) runs in a thread, and all such reads share one
connection. A long read has its own connection, which is closed after the read, so that no
connection is left open when the event loop ends.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from typing import Any, Concatenate, ParamSpec, TypeVar

import aiosqlite

from cached_session.errors import SessionClosed
from cached_session.journal.connections import Connections, end_transaction
from cached_session.journal.open_connection import existing_uri
from cached_session.journal.sqlite.awaiting import shielded
from cached_session.journal.sqlite.db_errors import FOREIGN_ERRORS, is_locked, journal_error
from cached_session.journal.sqlite.tracked_connection import FileVersion, file_version
from cached_session.journal.thread_pool import ThreadPool
from cached_session.journal.writer import Writer

__all__ = ["Fetch", "Readers"]

P = ParamSpec("P")
T = TypeVar("T")

Fetch = Callable[[int], Awaitable[list[Any]]]
"""A function that returns the next rows of a query, up to a maximum number."""

READ_PATIENCE = 0.005
"""Seconds that a short read waits for another thread's short read before the writing thread runs
it."""


class _Busy(Exception):
    """A short read would have to wait."""


class Readers:
    """The reads of one journal file. Safe to use from any thread and any event loop."""

    def __init__(
        self, connections: Connections, writer: Writer, pool: ThreadPool, *, threaded: bool
    ) -> None:
        """Read in the threads of ``pool``.

        If the journal is in memory and so has only one connection, or if ``threaded`` is false, the
        `Writer` runs all reads except short reads.
        """
        self._connections = connections
        self._writer = writer
        self._pool = pool
        self._threaded = threaded
        self._uses_writer = connections.in_memory or not threaded

    # -- short reads -----------------------------------------------------------------------------

    async def read(
        self,
        function: Callable[Concatenate[sqlite3.Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run a *short* query on the calling thread. The result includes all writes whose
        calls have returned.

        The writing thread runs the query if SQLite has locked the file to recover it after a crash,
        or if another thread's short read takes longer than `READ_PATIENCE`.
        """
        if self._connections.must_open():
            await self._writer.open()
        try:
            return self._read(False, function, *args, **kwargs)
        except _Busy:
            return await self._writer.maintain(function, *args, **kwargs)

    def read_blocking(
        self,
        function: Callable[Concatenate[sqlite3.Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run a short query without an event loop. The journal must be open."""
        connections = self._connections
        connections.check_process()
        if connections.reader is not None and not self._writer.closed and connections.must_open():
            self._writer.open_blocking()
        return self._read(True, function, *args, **kwargs)

    def _read(
        self,
        wait: bool,
        function: Callable[Concatenate[sqlite3.Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        connections = self._connections
        connections.check_process()
        if not connections.reading.acquire(timeout=-1 if wait else READ_PATIENCE):
            raise _Busy
        try:
            # No thread can close the connection while this method holds the lock.
            conn = connections.reader
            if self._writer.closed or conn is None:
                raise SessionClosed(f"the journal {connections.path} is closed; open a new session")
            end_transaction(conn)
            return function(conn, *args, **kwargs)
        except FOREIGN_ERRORS as error:
            if not wait and is_locked(error):
                raise _Busy from error
            connections.suspect(error)
            raise journal_error(error, connections.path) from error
        finally:
            connections.reading.release()

    async def version(self) -> FileVersion:
        """Return a value that changes with every commit to the file, of this or another process."""
        return await self.read(file_version)

    # -- reads in threads ------------------------------------------------------------------------

    async def read_aside(
        self,
        function: Callable[Concatenate[sqlite3.Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run a query of some milliseconds in a thread. The result includes all writes
        whose calls have returned."""
        self._connections.check_process()
        if self._uses_writer:
            return await self._writer.maintain(function, *args, **kwargs)
        if self._connections.must_open():
            await self._writer.open()
        reading = self._pool.run(self._read_aside, function, *args, **kwargs)
        return await shielded(asyncio.ensure_future(reading))

    def _read_aside(
        self,
        function: Callable[Concatenate[sqlite3.Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        with self._connections.asides:
            if self._writer.closed:
                raise SessionClosed(
                    f"the journal {self._connections.path} is closed; open a new session"
                )
            with self._mapped_errors():
                conn = self._connections.aside()
                end_transaction(conn)
                return function(conn, *args, **kwargs)

    async def read_long(self, function: Callable[[sqlite3.Connection, Callable[[], bool]], T]) -> T:
        """Run a query of any length in a thread. The second argument of ``function`` is a function
        that returns whether the caller still waits. A cancelled caller returns when ``function``
        has ended."""
        if self._uses_writer:
            return await self.read_aside(function, lambda: True)
        self._connections.check_process()
        if self._connections.must_open():
            await self._writer.open()
        given_up = threading.Event()
        reading: asyncio.Future[T] = asyncio.ensure_future(
            self._pool.run(self._read_long, function, lambda: not given_up.is_set())
        )
        try:
            await asyncio.wait([reading])
        except asyncio.CancelledError:
            given_up.set()
            await shielded(asyncio.ensure_future(asyncio.wait([reading])))
            if not reading.cancelled():
                reading.exception()  # mark it as retrieved, so that asyncio does not log it
            raise
        return reading.result()

    def _read_long(
        self,
        function: Callable[[sqlite3.Connection, Callable[[], bool]], T],
        is_wanted: Callable[[], bool],
    ) -> T:
        with self._mapped_errors(), closing(self._connect()) as conn:
            conn.execute("PRAGMA query_only = ON")
            return function(conn, is_wanted)

    def _connect(self) -> sqlite3.Connection:
        """Open a further connection. The file must exist."""
        return sqlite3.connect(
            existing_uri(self._connections.path),
            uri=True,
            timeout=self._connections.busy_ms / 1000,
            isolation_level=None,
            check_same_thread=False,
        )

    @contextmanager
    def _mapped_errors(self) -> Iterator[None]:
        """Convert errors of SQLite and the file system to errors of this package."""
        try:
            yield
        except FOREIGN_ERRORS as error:
            self._connections.suspect(error)
            raise journal_error(error, self._connections.path) from error

    async def offload(self, work: Callable[..., T], *arguments: Any) -> T:
        """Run a function in a thread, because it would block the event loop. If ``threaded`` is
        false, run the function on the calling thread."""
        if not self._threaded:
            return work(*arguments)
        return await self._pool.run(work, *arguments)

    # -- streams ---------------------------------------------------------------------------------

    @asynccontextmanager
    async def rows(self, sql: str, parameters: tuple[Any, ...]) -> AsyncIterator[Fetch]:
        """Read the rows of a query from one snapshot, in slices.

        The context manager yields a function ``fetch``. ``await fetch(most)`` returns the next
        rows, at most ``most`` of them, and an empty list at the end.
        """
        self._connections.check_process()
        if self._uses_writer:
            held = await self.read_aside(_fetch_all, sql, parameters)
            position = 0

            async def take(most: int) -> list[Any]:
                nonlocal position
                position += most
                return held[position - most : position]

            yield take
            return
        if self._connections.must_open():
            await self._writer.open()
        with self._mapped_errors():
            db = await self._open_stream()
        # A cursor that a cancelled caller never received would keep the file open: close it too.
        executing = asyncio.ensure_future(_cursor(db, sql, parameters))
        try:
            with self._mapped_errors():
                cursor = await shielded(executing)

            async def fetch(most: int) -> list[Any]:
                with self._mapped_errors():
                    return list(await cursor.fetchmany(most))

            # The `yield` also raises errors of the caller's own code, which must not be mapped.
            yield fetch
        finally:
            with self._mapped_errors():
                await shielded(asyncio.ensure_future(_close_stream(db, executing)))

    async def _open_stream(self) -> aiosqlite.Connection:
        """Open a connection for one stream, and close it if the caller is cancelled."""

        async def connect() -> aiosqlite.Connection:
            db = await aiosqlite.connect(
                existing_uri(self._connections.path),
                uri=True,
                timeout=self._connections.busy_ms / 1000,
                isolation_level=None,
            )
            await db.execute_fetchall("PRAGMA query_only = ON")
            return db

        opening = asyncio.ensure_future(connect())
        try:
            return await shielded(opening)
        except asyncio.CancelledError:
            if not opening.cancelled() and opening.exception() is None:
                await shielded(asyncio.ensure_future(opening.result().close()))
            raise


async def _cursor(
    db: aiosqlite.Connection, sql: str, parameters: tuple[Any, ...]
) -> aiosqlite.Cursor:
    return await db.execute(sql, parameters)


async def _close_stream(
    db: aiosqlite.Connection, executing: asyncio.Future[aiosqlite.Cursor]
) -> None:
    try:
        if executing.done() and not executing.cancelled() and executing.exception() is None:
            await executing.result().close()
    finally:
        await db.close()


def _fetch_all(conn: sqlite3.Connection, sql: str, parameters: tuple[Any, ...]) -> list[Any]:
    return conn.execute(sql, parameters).fetchall()
