"""One journal: its writing thread, and who waits for what.

Every change is a *job*: a function over a SQLite connection, run inside a transaction by the one
thread that writes. Jobs that wait at the same moment share a commit; each caller returns after the
commit its job is in. A job must be repeatable: when one of a group fails, the group is rolled back
and each job runs again in a transaction of its own.

Short reads run on the caller's own thread over a second connection (a tail read costs less than
handing it over); long ones take a connection of their own, off the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import aiosqlite

from cached_session import forks
from cached_session.errors import JournalError, SessionClosed
from cached_session.journal import fulltext
from cached_session.journal.file import File
from cached_session.journal.opening import MEMORY, there
from cached_session.journal.outcome import (
    FOREIGN,
    Outcome,
    is_locked,
    is_passing,
    journal_error,
    settle,
)
from cached_session.journal.tails import Version, version_of
from cached_session.journal.threads import Threads

__all__ = ["MEMORY", "Journal", "journal_error", "settle"]

T = TypeVar("T")

log = logging.getLogger("cached_session.journal")

GROUP_MOST = 256
"""Jobs that share one commit: bounds how long the first of them waits for the last."""
TOLD_MOST = 32
"""Outcomes that an event loop is told of at a time: their tasks go on one after the other, and
everybody else waits meanwhile."""
READ_PATIENCE = 0.005
"""Seconds that a short read waits for another thread's short read before it is handed over."""
IDLE = 0.1
"""Seconds without a job after which the writing thread does what nobody waits for: it indexes a
slice, or carries the log over."""

LOGGED_MOST = 8
"""Transactions after which an idle thread carries the log over into the file: so it begins anew.
While it grows, each commit has the file system commit its new size, too, and waits for the disk
twice as long (ext4: 0.33 ms in place of 0.13)."""

UNINDEXED_MOST = 4096
"""Jobs after which a thread that is never idle begins to index all the same, a slice for each slice
that is written: what waits for it must not grow without end. Most bursts are over before: of what
it costs to write an item in each of 1,000 sessions, the index was a ninth."""


@dataclass
class _Job(Generic[T]):
    run: Callable[[sqlite3.Connection], T]
    done: Callable[[T | None, BaseException | None], None]
    alone: bool = False
    """Not in a transaction: opening, closing, checkpoints."""
    loop: asyncio.AbstractEventLoop | None = None
    """Where `done` is to be called; None: on any thread."""


Told = tuple[_Job[Any], Any, BaseException | None]
"""A job, and its result or error."""


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
        self._busy_ms = int(busy_timeout * 1000)
        self._file = File(
            self.path,
            durability=durability,
            busy_ms=self._busy_ms,
            search_index=search_index,
            on_replaced=on_replaced,
        )
        self._threaded = threaded
        self._jobs: queue.SimpleQueue[_Job[Any] | None] = queue.SimpleQueue()
        self._state = threading.Lock()
        self._thread: threading.Thread | None = None
        self._threads = Threads()
        self._ended: Future[None] = Future()
        """The writing thread has closed everything; done just before its own end."""
        # In memory there is one connection for reading and writing: a reader must not see
        # the middle of a transaction.
        self._exclusive = self._file.reading if self.in_memory else threading.Lock()
        """Held while the connection that writes is in use."""
        locks = (self._exclusive, self._file.reading, self._file.asides, self._state)
        forks.wait_for(self, *dict.fromkeys(locks))
        self._closed = False
        self._pid = os.getpid()
        self._logged = 0
        """Transactions since the log was last carried over into the file."""
        self._unindexed = 0
        """Jobs of which the search index may know nothing yet."""

    def __repr__(self) -> str:
        return f"Journal({self.path!r})"

    @property
    def in_memory(self) -> bool:
        """Whether the journal vanishes with this object."""
        return self._file.in_memory

    @property
    def is_open(self) -> bool:
        """Whether the file is open and still the one of its name."""
        return self._file.writer is not None and not self._closed and not self._file.must_open()

    # -- writing ---------------------------------------------------------------------------------

    async def write(self, run: Callable[[sqlite3.Connection], T]) -> T:
        """Run a job in a transaction; what it returned, after its commit.

        If cancelled, the job's outcome is awaited before the cancellation goes on: the change is
        then entirely in or entirely out.

        Raises:
            JournalError: the journal could not be written; nothing of the job is stored.
        """
        return await settle(self._submit(run))

    async def maintain(self, run: Callable[[sqlite3.Connection], T]) -> T:
        """Run what SQLite does not allow inside a transaction, alone on the writing thread."""
        return await settle(self._submit(run, alone=True))

    def write_soon(
        self, run: Callable[[sqlite3.Connection], T], loop: asyncio.AbstractEventLoop
    ) -> asyncio.Future[T]:
        """Like `write`, without waiting: the future's result comes after the commit."""
        return self._submit(run, loop)

    def write_blocking(self, run: Callable[[sqlite3.Connection], T]) -> T:
        """Like `write`, from a thread that runs no event loop."""
        outcome: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()
        self._enqueue(_Job(run, lambda result, error: outcome.put((result, error))))
        result, error = outcome.get()
        if error is not None:
            raise error
        return result  # type: ignore[return-value]

    def _submit(
        self,
        run: Callable[[sqlite3.Connection], T],
        loop: asyncio.AbstractEventLoop | None = None,
        *,
        alone: bool = False,
    ) -> asyncio.Future[T]:
        loop = loop or asyncio.get_running_loop()
        future: Outcome[T] = Outcome(loop=loop)
        self._enqueue(_Job(run, future.tell, alone, loop))
        return future

    def _enqueue(self, job: _Job[Any]) -> None:
        self._check_process()
        with self._state:
            if self._closed:
                raise SessionClosed(f"the journal {self.path} is closed; open a new session")
            if self._threaded:
                if self._thread is None:
                    # A daemon: a program that never closes its session must still be able to end.
                    self._thread = threading.Thread(
                        target=self._live, name="cached-session-journal", daemon=True
                    )
                    self._thread.start()
                self._jobs.put(job)
                return
        self._run_group([job])

    def _check_process(self) -> None:
        # Before any lock: a thread that did not survive the fork may have held it.
        if os.getpid() != self._pid:
            raise JournalError(
                f"the journal {self.path} was opened before this process was forked; SQLite "
                "connections do not survive a fork. Make a new session in the child"
            )

    def _live(self) -> None:
        try:
            self._work()
        finally:
            self._threads.close()
            self._ended.set_result(None)

    def _work(self) -> None:
        behind = False
        while True:
            try:
                job = self._jobs.get(timeout=IDLE if behind else None)
            except queue.Empty:
                behind = self._unasked(self._index) or self._unasked(self._carry_over)
                continue
            if job is None:
                # Here, not on the event loop: closing checkpoints, which waits for the disk.
                self._file.close()
                return
            self._run_with_followers(job)
            behind = True
            # What a job holds (its items, its session) must not live until the next one comes.
            del job

    def _unasked(self, work: Callable[[sqlite3.Connection], bool]) -> bool:
        """Do what nobody waits for; whether there is more of it."""
        try:
            conn = self._file.writer
            if conn is None or self._file.must_open():
                return False
            return work(conn)
        except _Moved:
            return False
        except Exception as error:  # noqa: BLE001 - the writing thread outlives it
            if is_locked(error):
                return True
            # Nobody waits for it: the next job meets the same trouble, and tells its caller.
            self._file.suspect(error.error if isinstance(error, _Uncommitted) else error)
            log.warning("what the idle journal does waits for the next write: %s", error)
            return False

    def _index(self, conn: sqlite3.Connection) -> bool:
        """Index some of the operations that wait for it."""
        waiting, self._unindexed = self._unindexed, 0
        with self._exclusive:
            if not fulltext.is_behind(conn):
                return False
        # No lock is waited for: a write that comes meanwhile would wait behind this, and only then
        # begin to wait for itself.
        conn.execute("PRAGMA busy_timeout = 0")
        try:
            self._transaction(conn, [_Job(fulltext.slice_up, _untold)])
        finally:
            conn.execute(f"PRAGMA busy_timeout = {self._busy_ms}")
        self._unindexed = max(0, waiting - fulltext.SLICE)
        return True

    def _carry_over(self, conn: sqlite3.Connection) -> bool:
        """Carry what a log of some length holds over into the file: the next write begins it anew.
        What somebody still reads in the log stays there, and nobody is waited for."""
        if self._logged >= LOGGED_MOST:
            self._logged = 0
            with self._exclusive:
                conn.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        return False

    def _run_with_followers(self, job: _Job[Any]) -> None:
        group = [job]
        # Nobody else takes jobs: what is there now stays there.
        while len(group) < GROUP_MOST and not group[-1].alone and not self._jobs.empty():
            following = self._jobs.get()
            if following is None:
                self._jobs.put(None)
                break
            group.append(following)
        tail = [group.pop()] if group[-1].alone else []
        if group:
            self._run_group(group)
        if tail:
            self._run_group(tail)

    def _run_group(self, group: list[_Job[Any]], *, moved: bool = False) -> None:
        try:
            # A transaction asks itself, under the lock, whether the file is still the one of its
            # name: it need not be asked before.
            conn = self._file.writer if self._file.is_ready else None
            if conn is None or moved or group[0].alone:
                conn = self._file.current()
            if group[0].alone:
                with self._exclusive:
                    _end_transaction(conn)
                    results = [group[0].run(conn)]
            else:
                results = self._transaction(conn, group)
        except _Moved:
            self._run_group(group, moved=True)
            return
        except _Uncommitted as failed:
            # No job is at fault, and none is run again: it could have taken effect all the same.
            self._file.suspect(failed.error)
            if self._gives_up_index(failed.error):
                self._run_group(group)
                return
            self._tell([(job, None, self._mapped(failed.error)) for job in group])
            return
        except BaseException as error:  # noqa: BLE001 - whoever handed the job in is told
            self._file.suspect(error)
            if len(group) == 1 or is_locked(error):
                # A lock that one has waited for in vain is not waited for again by each.
                self._tell([(job, None, self._mapped(error)) for job in group])
            else:
                for job in group:
                    self._run_group([job])
            return
        self._tell([(job, result, None) for job, result in zip(group, results, strict=True)])
        self._unindexed += len(group)
        if self._unindexed >= UNINDEXED_MOST:
            self._unasked(self._index)

    def _tell(self, outcomes: list[Told]) -> None:
        """Tell each caller what became of its job. Those of one event loop are told in one call:
        waking it up costs more than all that it is told."""
        by_loop: dict[asyncio.AbstractEventLoop, list[Told]] = {}
        for told in outcomes:
            loop = told[0].loop
            if loop is None or not self._threaded:
                _tell_all([told])
            else:
                by_loop.setdefault(loop, []).append(told)
        for loop, those in by_loop.items():
            try:
                for start in range(0, len(those), TOLD_MOST):
                    loop.call_soon_threadsafe(_tell_all, those[start : start + TOLD_MOST])
            except RuntimeError:
                # That loop is closed: the changes stand, and nobody is left to tell.
                continue

    def _transaction(self, conn: sqlite3.Connection, group: list[_Job[Any]]) -> list[Any]:
        with self._exclusive:
            _end_transaction(conn)
            conn.execute("BEGIN IMMEDIATE")
            try:
                # Under the lock: who puts another file here holds it, or did not ask anybody.
                if self._file.is_moved():
                    raise _Moved
                results = [job.run(conn) for job in group]
                _commit(conn)
            except BaseException:
                # On a full disk or an I/O error SQLite may have rolled back by itself.
                if conn.in_transaction:
                    conn.execute("ROLLBACK")
                raise
        self._logged += 1
        return results

    def _gives_up_index(self, error: sqlite3.Error) -> bool:
        """Whether a commit may have failed for the search index's sake: what is to be written to it
        SQLite writes then. It is given up, and everything is written without it."""
        try:
            conn = self._file.writer
            if conn is None or is_passing(error) or not fulltext.is_kept(conn):
                return False
            self._transaction(conn, [_Job(fulltext.give_up, _untold)])
        except (_Moved, _Uncommitted, sqlite3.Error) as inner:
            log.warning("the search index cannot be given up: %s", inner)
            return False
        log.warning("the search index is given up, and built anew at the next opening: %s", error)
        return True

    def _mapped(self, error: BaseException) -> BaseException:
        return journal_error(error, self.path)

    # -- reading ---------------------------------------------------------------------------------

    async def read(self, run: Callable[[sqlite3.Connection], T]) -> T:
        """Run a *short* query on the calling thread; sees every write that has returned.

        Where the file is locked (recovery after a crash) the query is handed to the writing thread.
        """
        if self._file.must_open():
            await settle(self._submit(_nothing, alone=True))
        try:
            return self.read_blocking(run, wait=False)
        except _Busy:
            return await settle(self._submit(run, alone=True))

    def read_blocking(self, run: Callable[[sqlite3.Connection], T], *, wait: bool = True) -> T:
        """Like `read`, without an event loop. The journal must be open."""
        self._check_process()
        if wait and self._file.reader is not None and not self._closed and self._file.must_open():
            self.open_blocking()
        if not self._file.reading.acquire(timeout=-1 if wait else READ_PATIENCE):
            raise _Busy
        try:
            # Nobody lets go of the connection while it is read over.
            conn = self._file.reader
            if self._closed or conn is None:
                raise SessionClosed(f"the journal {self.path} is not open")
            _end_transaction(conn)
            return run(conn)
        except FOREIGN as error:
            if not wait and is_locked(error):
                raise _Busy from error
            self._file.suspect(error)
            raise self._mapped(error) from error
        finally:
            self._file.reading.release()

    def version(self) -> Version | None:
        """What changes with every commit of another process, and with each of this one that changes
        a history; None while a write is under way, or if it cannot be told. For a caller that has
        just asked whether the journal is open."""
        conn, lock = self._file.writer, self._exclusive
        if conn is None or os.getpid() != self._pid or not lock.acquire(blocking=False):
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
        return await self._threads.run(work, *arguments)

    async def read_aside(self, run: Callable[[sqlite3.Connection], T]) -> T:
        """Run a query of some milliseconds in a thread, beside short reads and writes."""
        self._check_process()
        if self.in_memory or not self._threaded:
            return await settle(self._submit(run, alone=True))
        if self._file.must_open():
            await settle(self._submit(_nothing, alone=True))
        return await settle(asyncio.ensure_future(self._threads.run(self._read_aside, run)))

    def _read_aside(self, run: Callable[[sqlite3.Connection], T]) -> T:
        with self._file.asides:
            if self._closed:
                raise SessionClosed(f"the journal {self.path} is closed")
            try:
                conn = self._file.aside()
                _end_transaction(conn)
                return run(conn)
            except FOREIGN as error:
                self._file.suspect(error)
                raise self._mapped(error) from error

    async def read_long(self, run: Callable[[sqlite3.Connection, Callable[[], bool]], T]) -> T:
        """Run a query of any length in a thread, over a connection of its own. ``run`` is told
        whether anybody still waits for it; a caller that is cancelled waits until it has ended."""
        if self.in_memory or not self._threaded:
            return await self.read_aside(lambda conn: run(conn, lambda: True))
        self._check_process()
        if self._file.must_open():
            await settle(self._submit(_nothing, alone=True))
        given_up = threading.Event()
        reading: asyncio.Future[T] = asyncio.ensure_future(
            self._threads.run(self._read_long, run, lambda: not given_up.is_set())
        )
        try:
            await asyncio.wait([reading])
        except asyncio.CancelledError:
            given_up.set()
            await settle(asyncio.ensure_future(asyncio.wait([reading])))
            if not reading.cancelled():
                reading.exception()  # seen: nobody waits for it
            raise
        return reading.result()

    def _read_long(
        self,
        run: Callable[[sqlite3.Connection, Callable[[], bool]], T],
        is_wanted: Callable[[], bool],
    ) -> T:
        try:
            with closing(
                sqlite3.connect(
                    there(self.path), uri=True, timeout=self._busy_ms / 1000, isolation_level=None
                )
            ) as conn:
                conn.execute("PRAGMA query_only = ON")
                return run(conn, is_wanted)
        except FOREIGN as error:
            self._file.suspect(error)
            raise self._mapped(error) from error

    @asynccontextmanager
    async def rows(
        self, sql: str, parameters: tuple[Any, ...]
    ) -> AsyncIterator[Callable[[int], Any]]:
        """A long result read in slices off the event loop: yields ``await fetch(most)``.

        The rows are of one snapshot. The connection lives for this one read, so that no reading
        thread is ever left behind, whatever becomes of the event loop.
        """
        self._check_process()
        if self.in_memory or not self._threaded:
            held = await self.read_aside(lambda conn: conn.execute(sql, parameters).fetchall())
            position = 0

            async def take(most: int) -> list[Any]:
                nonlocal position
                position += most
                return held[position - most : position]

            yield take
            return
        if self._file.must_open():
            await settle(self._submit(_nothing, alone=True))
        try:
            db = await self._open_long()
            # A cursor that a cancelled caller never got would keep the file open: it is closed too.
            asking = asyncio.ensure_future(_cursor(db, sql, parameters))
            try:
                cursor = await settle(asking)

                async def fetch(most: int) -> list[Any]:
                    return list(await cursor.fetchmany(most))

                yield fetch
            finally:
                await settle(asyncio.ensure_future(_let_go(db, asking)))
        except FOREIGN as error:
            self._file.suspect(error)
            raise self._mapped(error) from error

    async def _open_long(self) -> aiosqlite.Connection:
        """A connection for one long read; one that a cancelled caller will not use is closed."""

        async def connect() -> aiosqlite.Connection:
            db = await aiosqlite.connect(
                there(self.path), uri=True, timeout=self._busy_ms / 1000, isolation_level=None
            )
            await db.execute_fetchall("PRAGMA query_only = ON")
            return db

        opening = asyncio.ensure_future(connect())
        try:
            return await settle(opening)
        except asyncio.CancelledError:
            if not opening.cancelled() and opening.exception() is None:
                await settle(asyncio.ensure_future(opening.result().close()))
            raise

    # -- opening and closing ---------------------------------------------------------------------

    async def open(self) -> None:
        """Open the file, make or check its schema. Idempotent; the first job does it by itself.

        Raises:
            JournalError: it cannot be opened, or is no journal; JournalTooNew, JournalCorrupt.
        """
        await settle(self._submit(_nothing, alone=True))

    def open_blocking(self) -> None:
        """`open` from a thread that runs no event loop."""
        outcome: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._enqueue(_Job(_nothing, lambda _, error: outcome.put(error), alone=True))
        error = outcome.get()
        if error is not None:
            raise error

    async def close(self) -> None:
        """Finish the jobs that were handed in, checkpoint and close. Idempotent."""
        if not self._mark_closed():
            return
        thread = self._thread
        if thread is not None:
            self._jobs.put(None)
            try:
                await settle(asyncio.wrap_future(self._ended))
            finally:
                thread.join()  # it has said its last word
        else:
            self._file.close()

    def close_blocking(self) -> None:
        """`close` for the end of the process, where no event loop is left."""
        if not self._mark_closed():
            return
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
        else:
            self._file.close()

    def _mark_closed(self) -> bool:
        with self._state:
            was_open, self._closed = not self._closed, True
        # After a fork the connections belong to the parent: closing them here could drop its locks.
        return was_open and os.getpid() == self._pid


class _Moved(Exception):
    """The file is no longer the one of its name: nothing must be written to it."""


class _Uncommitted(Exception):
    """SQLite refuses to commit."""

    def __init__(self, error: sqlite3.Error) -> None:
        super().__init__(str(error))
        self.error = error


class _Busy(Exception):
    """A short read would have had to wait."""


def _commit(conn: sqlite3.Connection) -> None:
    try:
        conn.execute("COMMIT")
    except sqlite3.Error as error:
        raise _Uncommitted(error) from error


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


def _end_transaction(conn: sqlite3.Connection) -> None:
    """End a transaction whose end failed on an I/O error: nothing of it was acknowledged, and no
    other can begin while it is open."""
    if conn.in_transaction:
        conn.execute("ROLLBACK")


def _tell_all(outcomes: list[Told]) -> None:
    for job, result, error in outcomes:
        job.done(result, error)


def _untold(_: object, __: object) -> None:
    """For a job that nobody waits for."""


def _nothing(_: sqlite3.Connection) -> None:
    """The job that only opens the file."""
