"""Reads that would hold an event loop up: in threads, beside the thread that writes.

Those of some milliseconds take turns on one connection. One of any length has a connection of its
own, which lives for this one read: none is left behind, whatever becomes of the event loop.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from typing import Any, TypeVar

import aiosqlite

from cached_session.errors import SessionClosed
from cached_session.journal.connect import there
from cached_session.journal.connections import Connections, end_transaction
from cached_session.journal.sqlite.awaiting import shielded
from cached_session.journal.sqlite.db_errors import FOREIGN_ERRORS, journal_error
from cached_session.journal.thread_pool import ThreadPool
from cached_session.journal.writer import Writer

__all__ = ["Readers"]

T = TypeVar("T")


class Readers:
    """The long reads of one journal file. Safe to use from any thread and any event loop."""

    def __init__(
        self, file: Connections, jobs: Writer, threads: ThreadPool, *, threaded: bool
    ) -> None:
        """Reads in ``threads``; where there is no second connection, or nothing is ``threaded``,
        among the jobs."""
        self._connections = file
        self._writer = jobs
        self._pool = threads
        self._among_jobs = file.in_memory or not threaded

    async def read(self, run: Callable[[sqlite3.Connection], T]) -> T:
        """Run a query of some milliseconds; sees every write that has returned."""
        self._connections.check_process()
        if self._among_jobs:
            return await shielded(self._writer.submit(run, alone=True))
        if self._connections.must_open():
            await self._writer.open()
        return await shielded(asyncio.ensure_future(self._pool.run(self._read, run)))

    def _read(self, run: Callable[[sqlite3.Connection], T]) -> T:
        with self._connections.asides:
            if self._writer.closed:
                raise SessionClosed(f"the journal {self._connections.path} is closed")
            try:
                conn = self._connections.aside()
                end_transaction(conn)
                return run(conn)
            except FOREIGN_ERRORS as error:
                self._connections.suspect(error)
                raise journal_error(error, self._connections.path) from error

    async def read_long(self, run: Callable[[sqlite3.Connection, Callable[[], bool]], T]) -> T:
        """Run a query of any length. ``run`` is told whether anybody still waits for it; a caller
        that is cancelled waits until it has ended."""
        if self._among_jobs:
            return await self.read(lambda conn: run(conn, lambda: True))
        self._connections.check_process()
        if self._connections.must_open():
            await self._writer.open()
        given_up = threading.Event()
        reading: asyncio.Future[T] = asyncio.ensure_future(
            self._pool.run(self._read_long, run, lambda: not given_up.is_set())
        )
        try:
            await asyncio.wait([reading])
        except asyncio.CancelledError:
            given_up.set()
            await shielded(asyncio.ensure_future(asyncio.wait([reading])))
            if not reading.cancelled():
                reading.exception()  # seen: nobody waits for it
            raise
        return reading.result()

    def _read_long(
        self,
        run: Callable[[sqlite3.Connection, Callable[[], bool]], T],
        is_wanted: Callable[[], bool],
    ) -> T:
        path, patience = self._connections.path, self._connections.busy_ms / 1000
        try:
            with closing(
                sqlite3.connect(there(path), uri=True, timeout=patience, isolation_level=None)
            ) as conn:
                conn.execute("PRAGMA query_only = ON")
                return run(conn, is_wanted)
        except FOREIGN_ERRORS as error:
            self._connections.suspect(error)
            raise journal_error(error, path) from error

    @asynccontextmanager
    async def rows(
        self, sql: str, parameters: tuple[Any, ...]
    ) -> AsyncIterator[Callable[[int], Any]]:
        """A long result in slices: yields ``await fetch(most)``. The rows are of one snapshot."""
        self._connections.check_process()
        if self._among_jobs:
            held = await self.read(lambda conn: conn.execute(sql, parameters).fetchall())
            position = 0

            async def take(most: int) -> list[Any]:
                nonlocal position
                position += most
                return held[position - most : position]

            yield take
            return
        if self._connections.must_open():
            await self._writer.open()
        with self._told():
            db = await self._open_long()
        # A cursor that a cancelled caller never got would keep the file open: it is closed too.
        asking = asyncio.ensure_future(_cursor(db, sql, parameters))
        try:
            with self._told():
                cursor = await shielded(asking)

            async def fetch(most: int) -> list[Any]:
                with self._told():
                    return list(await cursor.fetchmany(most))

            # What the caller makes of the rows is raised in here, and stays the caller's.
            yield fetch
        finally:
            with self._told():
                await shielded(asyncio.ensure_future(_let_go(db, asking)))

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What SQLite and the file system say, in our words."""
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            self._connections.suspect(error)
            raise journal_error(error, self._connections.path) from error

    async def _open_long(self) -> aiosqlite.Connection:
        """A connection for one long read; one that a cancelled caller will not use is closed."""

        async def connect() -> aiosqlite.Connection:
            db = await aiosqlite.connect(
                there(self._connections.path),
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


async def _let_go(db: aiosqlite.Connection, asking: asyncio.Future[aiosqlite.Cursor]) -> None:
    try:
        if asking.done() and not asking.cancelled() and asking.exception() is None:
            await asking.result().close()
    finally:
        await db.close()
