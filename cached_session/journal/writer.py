"""The thread that writes, and who waits for what.

Every change is a *job*: a function over a SQLite connection, run inside a transaction by the one
thread that writes. Jobs that wait at the same moment share a commit; each caller returns after the
commit its job is in. A job must be repeatable: when one of a group fails, the group is rolled back
and each job runs again in a transaction of its own.

While no job comes, the thread does what nobody waits for.
"""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from cached_session import fork_safety
from cached_session.errors import SessionClosed
from cached_session.journal.connections import Connections, end_transaction
from cached_session.journal.sqlite.awaiting import ShieldedFuture, shielded
from cached_session.journal.sqlite.db_errors import is_locked, is_transient, journal_error
from cached_session.journal.tables import search_index
from cached_session.journal.thread_pool import ThreadPool

__all__ = ["Writer"]

T = TypeVar("T")

log = logging.getLogger("cached_session.journal")

GROUP_MOST = 256
"""Jobs that share one commit: bounds how long the first of them waits for the last."""
TOLD_MOST = 32
"""Outcomes that an event loop is told of at a time: their tasks go on one after the other, and
everybody else waits meanwhile."""
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


AMBIGUOUS = (sqlite3.DatabaseError, sqlite3.OperationalError)
"""The errors, and not those derived from them, that damage in the search index takes."""


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


class Writer:
    """The jobs of one journal file, which is opened by the first of them and closed once.

    Safe to use from any thread and any event loop. If not ``threaded``, every job runs at once on
    the calling thread: the same code without the thread.
    """

    def __init__(self, file: Connections, threads: ThreadPool, *, threaded: bool) -> None:
        """No job yet, and no thread. ``threads`` are closed together with the file."""
        self._connections = file
        self._pool = threads
        self._threaded = threaded
        self._waiting: queue.SimpleQueue[_Job[Any] | None] = queue.SimpleQueue()
        """None: there will be no more."""
        self._state = threading.Lock()
        """Held while a job is taken on, and while it is said that no more are."""
        fork_safety.wait_for(self, self._state)
        self.closed = False
        """Whether no more are taken on."""
        self._thread: threading.Thread | None = None
        self._ended: Future[None] = Future()
        """The writing thread has closed everything; done just before its own end."""
        self._logged = 0
        """Transactions since the log was last carried over into the file."""
        self._unindexed = 0
        """Writer of which the search index may know nothing yet."""

    # -- handing a job in ------------------------------------------------------------------------

    def submit(
        self,
        run: Callable[[sqlite3.Connection], T],
        loop: asyncio.AbstractEventLoop | None = None,
        *,
        alone: bool = False,
    ) -> asyncio.Future[T]:
        """Hand a job in; its outcome, on the event loop, after its commit. ``alone``: it is run
        outside a transaction, and no other with it."""
        try:
            loop = loop or asyncio.get_running_loop()
        except RuntimeError as error:
            raise RuntimeError(
                "a session runs on asyncio, and no event loop of asyncio runs here (trio?)"
            ) from error
        future: ShieldedFuture[T] = ShieldedFuture(loop=loop)
        self._enqueue(_Job(run, future.complete, alone, loop))
        return future

    def run_blocking(self, run: Callable[[sqlite3.Connection], T], *, alone: bool = False) -> T:
        """Hand a job in and wait for it, on a thread that runs no event loop."""
        outcome: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()
        self._enqueue(_Job(run, lambda result, error: outcome.put((result, error)), alone))
        result, error = outcome.get()
        if error is not None:
            raise error
        return result  # type: ignore[return-value]

    def _enqueue(self, job: _Job[Any]) -> None:
        self._connections.check_process()
        with self._state:
            if self.closed:
                raise SessionClosed(
                    f"the journal {self._connections.path} is closed; open a new session"
                )
            if self._threaded:
                if self._thread is None:
                    # A daemon: a program that never closes its session must still be able to end.
                    self._thread = threading.Thread(
                        target=self._live, name="cached-session-journal", daemon=True
                    )
                    self._thread.start()
                self._waiting.put(job)
                return
        self._run_group([job])

    # -- running them ----------------------------------------------------------------------------

    def _live(self) -> None:
        try:
            self._work()
        finally:
            self._pool.close()
            self._ended.set_result(None)

    def _work(self) -> None:
        behind = False
        while True:
            try:
                job = self._waiting.get(timeout=IDLE if behind else None)
            except queue.Empty:
                behind = self._unasked(self._index) or self._unasked(self._carry_over)
                continue
            if job is None:
                # Here, not on the event loop: closing checkpoints, which waits for the disk.
                self._connections.close()
                return
            self._run_with_followers(job)
            behind = True
            # What a job holds (its items, its session) must not live until the next one comes.
            del job

    def _run_with_followers(self, job: _Job[Any]) -> None:
        group = [job]
        # Nobody else takes jobs: what is there now stays there.
        while len(group) < GROUP_MOST and not group[-1].alone and not self._waiting.empty():
            following = self._waiting.get()
            if following is None:
                self._waiting.put(None)
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
            conn = self._connections.writer if self._connections.is_ready else None
            if conn is None or moved or group[0].alone:
                conn = self._connections.current()
            if group[0].alone:
                with self._connections.writing:
                    end_transaction(conn)
                    results = [group[0].run(conn)]
            else:
                results = self._transaction(conn, group)
        except _Moved:
            self._run_group(group, moved=True)
            return
        except _Uncommitted as failed:
            if self._gives_up_index(failed.error):
                self._run_group(group)
                return
            # No job is at fault, and none is run again: it could have taken effect all the same.
            self._connections.suspect(failed.error)
            self._tell(
                [(job, None, journal_error(failed.error, self._connections.path)) for job in group]
            )
            return
        except BaseException as error:  # noqa: BLE001 - whoever handed the job in is told
            if not group[0].alone and self._gives_up_index(error):
                self._run_group(group)
                return
            self._connections.suspect(error)
            if len(group) == 1 or is_locked(error):
                # A lock that one has waited for in vain is not waited for again by each.
                self._tell(
                    [(job, None, journal_error(error, self._connections.path)) for job in group]
                )
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
        with self._connections.writing:
            end_transaction(conn)
            conn.execute("BEGIN IMMEDIATE")
            try:
                # Under the lock: who puts another file here holds it, or did not ask anybody.
                if self._connections.is_moved():
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

    def _gives_up_index(self, error: BaseException) -> bool:
        """Whether a transaction may have failed for the search index's sake. SQLite writes to it
        what it was given before when it commits, and at any statement that needs a savepoint: the
        one at which it fails says nothing. So the index is given up, once, and everything is
        written without it; what fails again is the journal's own."""
        try:
            conn = self._connections.writer
            if conn is None or type(error) not in AMBIGUOUS or is_transient(error):
                return False
            if not search_index.is_kept(conn):
                return False
            self._transaction(conn, [_Job(search_index.give_up, _untold)])
        except (_Moved, _Uncommitted, sqlite3.Error) as inner:
            log.warning("the search index cannot be given up: %s", inner)
            return False
        log.warning("the search index is given up, and built anew at the next opening: %s", error)
        return True

    # -- while none comes ------------------------------------------------------------------------

    def _unasked(self, work: Callable[[sqlite3.Connection], bool]) -> bool:
        """Do what nobody waits for; whether there is more of it."""
        try:
            conn = self._connections.writer
            if conn is None or self._connections.must_open():
                return False
            return work(conn)
        except _Moved:
            return False
        except Exception as error:  # noqa: BLE001 - the writing thread outlives it
            if is_locked(error):
                return True
            # Nobody waits for it: the next job meets the same trouble, and tells its caller.
            self._connections.suspect(error.error if isinstance(error, _Uncommitted) else error)
            log.warning("what the idle journal does waits for the next write: %s", error)
            return False

    def _index(self, conn: sqlite3.Connection) -> bool:
        """Index some of the operations that wait for it."""
        waiting, self._unindexed = self._unindexed, 0
        with self._connections.writing:
            if not search_index.is_behind(conn):
                return False
        # No lock is waited for: a write that comes meanwhile would wait behind this, and only then
        # begin to wait for itself.
        conn.execute("PRAGMA busy_timeout = 0")
        try:
            self._transaction(conn, [_Job(search_index.slice_up, _untold)])
        finally:
            conn.execute(f"PRAGMA busy_timeout = {self._connections.busy_ms}")
        self._unindexed = max(0, waiting - search_index.SLICE)
        return True

    def _carry_over(self, conn: sqlite3.Connection) -> bool:
        """Carry what a log of some length holds over into the file: the next write begins it anew.
        What somebody still reads in the log stays there, and nobody is waited for."""
        if self._logged >= LOGGED_MOST:
            self._logged = 0
            with self._connections.writing:
                conn.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        return False

    # -- opening and closing ---------------------------------------------------------------------

    async def open(self) -> None:
        """Have the file opened, if `Connections.current` has to do so."""
        await shielded(self.submit(_nothing, alone=True))

    def open_blocking(self) -> None:
        """`open` from a thread that runs no event loop."""
        self.run_blocking(_nothing, alone=True)

    async def close(self) -> None:
        """Finish the jobs that were handed in, checkpoint and close. Idempotent."""
        if not self._mark_closed():
            return
        thread = self._thread
        if thread is not None:
            self._waiting.put(None)
            try:
                await shielded(asyncio.wrap_future(self._ended))
            finally:
                thread.join()  # it has said its last word
        else:
            self._connections.close()

    def close_blocking(self) -> None:
        """`close` for the end of the process, where no event loop is left."""
        if not self._mark_closed():
            return
        if self._thread is not None:
            self._waiting.put(None)
            self._thread.join()
        else:
            self._connections.close()

    def _mark_closed(self) -> bool:
        with self._state:
            was_open, self.closed = not self.closed, True
        # After a fork the connections belong to the parent: closing them here could drop its locks.
        return was_open and os.getpid() == self._connections.pid


class _Moved(Exception):
    """The file is no longer the one of its name: nothing must be written to it."""


class _Uncommitted(Exception):
    """SQLite refuses to commit."""

    def __init__(self, error: sqlite3.Error) -> None:
        super().__init__(str(error))
        self.error = error


def _commit(conn: sqlite3.Connection) -> None:
    try:
        conn.execute("COMMIT")
    except sqlite3.Error as error:
        raise _Uncommitted(error) from error


def _tell_all(outcomes: list[Told]) -> None:
    for job, result, error in outcomes:
        job.done(result, error)


def _untold(_: object, __: object) -> None:
    """For a job that nobody waits for."""


def _nothing(_: sqlite3.Connection) -> None:
    """The job that only opens the file."""
