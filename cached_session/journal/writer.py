"""The writing thread, which groups waiting writes into one commit.

A write is a function over the writing connection. Writes that wait at the same time share one
transaction, and their callers return after its commit. A write must be repeatable: if one write of
a group fails, the group is rolled back, and each write runs again in its own transaction.
"""

from __future__ import annotations

import asyncio
import os
import queue
import sqlite3
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Concatenate, ParamSpec, TypeVar

from cached_session import fork_safety
from cached_session.errors import SessionClosed
from cached_session.journal.connections import Connections, end_transaction
from cached_session.journal.idle_work import FileMoved, IdleWork, Uncommitted
from cached_session.journal.sqlite.awaiting import ShieldedFuture, shielded
from cached_session.journal.sqlite.db_errors import is_locked, journal_error
from cached_session.journal.start_thread import start_thread
from cached_session.journal.thread_pool import ThreadPool

__all__ = ["Writer"]

P = ParamSpec("P")
T = TypeVar("T")

GROUP_MOST = 256
"""Maximum number of writes in one commit. The first write of a group waits for the last."""
DELIVERED_MOST = 32
"""Maximum number of results in one callback. Their tasks run before other work of the loop."""
NO_LOOP = (
    "no asyncio event loop runs in this thread: nothing was stored; await the call "
    "in a program that runs on asyncio (trio is not supported)"
)
IDLE = 0.1
"""Seconds without a write before the thread does idle work."""


@dataclass(slots=True)
class _Job:
    """A function to run on the writing connection, with its arguments."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    done: Callable[[Any, BaseException | None], None]
    alone: bool = False
    """True if the job runs outside a transaction: opening, closing, checkpoints."""
    loop: asyncio.AbstractEventLoop | None = field(default=None)
    """The event loop on which `done` is called; None if the writing thread calls `done`."""

    def run(self, conn: sqlite3.Connection) -> Any:
        return self.function(conn, *self.args, **self.kwargs)


_Result = tuple[_Job, Any, BaseException | None]


class Writer:
    """The writes of one journal file. The first write opens the file.

    Safe to use from any thread and any event loop. If ``threaded`` is false, the same code runs
    every write on the calling thread.
    """

    def __init__(self, connections: Connections, pool: ThreadPool, *, threaded: bool) -> None:
        """Prepare a writer without a thread. ``pool`` is closed together with the file."""
        self._connections = connections
        self._pool = pool
        self._threaded = threaded
        self._waiting: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        """Jobs in the order in which they run; None ends the thread."""
        self._state = threading.Lock()
        """Lock that is held while a job is accepted, and while the writer is marked as closed."""
        fork_safety.wait_for(self, self._state)
        self.closed = False
        """True if no more writes are accepted."""
        self._thread: threading.Thread | None = None
        self._ended: Future[None] = Future()
        """Done when the writing thread has closed the file, just before the thread ends."""
        self._idle_work = IdleWork(connections, self._transaction)

    # -- accepting writes ------------------------------------------------------------------------

    async def write(
        self,
        function: Callable[Concatenate[sqlite3.Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run a function in a write transaction; return its result after the commit.

        A cancelled call first waits until all changes of the function are stored, or none is.

        Raises:
            JournalError: the journal could not be written. No change of the function is stored.
        """
        # Hot path: `_submit`, inlined.
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError as error:
            raise RuntimeError(NO_LOOP) from error
        future: ShieldedFuture[T] = ShieldedFuture(loop=loop)
        self._enqueue(_Job(function, args, kwargs, future.complete, False, loop))
        return await future

    async def write_reported(
        self,
        report: Callable[[T], None],
        function: Callable[Concatenate[sqlite3.Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run a function like `write`. After the commit, call ``report`` even on cancellation."""
        future: ShieldedFuture[T] = self._submit(_running_loop(), function, args, kwargs)
        try:
            result = await future
        except asyncio.CancelledError:
            if future.done() and future.exception() is None:
                report(future.result())
            raise
        report(result)
        return result

    def write_soon(
        self,
        loop: asyncio.AbstractEventLoop,
        function: Callable[Concatenate[sqlite3.Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> asyncio.Future[T]:
        """Start a write without waiting; the future completes after the commit."""
        return self._submit(loop, function, args, kwargs)

    def write_blocking(
        self,
        function: Callable[Concatenate[sqlite3.Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run a write from a thread that runs no event loop."""
        return self._wait_for(function, args, kwargs, alone=False)

    async def maintain(
        self,
        function: Callable[Concatenate[sqlite3.Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run a function alone on the writing thread, outside a transaction."""
        return await self._submit(_running_loop(), function, args, kwargs, alone=True)

    def _submit(
        self,
        loop: asyncio.AbstractEventLoop,
        function: Callable[..., T],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        *,
        alone: bool = False,
    ) -> ShieldedFuture[T]:
        future: ShieldedFuture[T] = ShieldedFuture(loop=loop)
        self._enqueue(_Job(function, args, kwargs, future.complete, alone, loop))
        return future

    def _wait_for(
        self,
        function: Callable[..., T],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        *,
        alone: bool,
    ) -> T:
        outcome: queue.SimpleQueue[tuple[T, BaseException | None]] = queue.SimpleQueue()

        def done(result: T, error: BaseException | None) -> None:
            outcome.put((result, error))

        self._enqueue(_Job(function, args, kwargs, done, alone))
        result, error = outcome.get()
        if error is not None:
            raise error
        return result

    def _enqueue(self, job: _Job) -> None:
        self._connections.check_process()
        with self._state:
            if self.closed:
                raise SessionClosed(
                    f"the journal {self._connections.path} is closed; open a new session"
                )
            if self._threaded:
                if self._thread is None:
                    self._thread = start_thread(self._live, self._connections.path)
                self._waiting.put(job)
                return
        self._run_group([job])

    # -- the thread ------------------------------------------------------------------------------

    def _live(self) -> None:
        try:
            self._work()
        finally:
            self._pool.close()
            self._ended.set_result(None)

    def _work(self) -> None:
        has_idle_work = False
        while True:
            try:
                job = self._waiting.get(timeout=IDLE if has_idle_work else None)
            except queue.Empty:
                has_idle_work = self._idle_work.do_some()
                continue
            if job is None:
                # Close on this thread, because closing runs a checkpoint, which waits for the disk.
                self._connections.close()
                return
            self._run_with_followers(job)
            has_idle_work = True
            # Do not keep the job's items and session alive until the next job arrives.
            del job

    def _run_with_followers(self, job: _Job) -> None:
        group = [job]
        # Only this thread takes jobs out of the queue, so a non-empty queue stays non-empty.
        while len(group) < GROUP_MOST and not group[-1].alone and not self._waiting.empty():
            following = self._waiting.get()
            if following is None:
                self._waiting.put(None)
                break
            group.append(following)
        last = [group.pop()] if group[-1].alone else []
        if group:
            self._run_group(group)
        if last:
            self._run_group(last)

    def _run_group(self, group: list[_Job], *, moved: bool = False) -> None:
        alone = group[0].alone
        try:
            # A transaction checks under the lock whether the file has moved, so this method
            # does not check it.
            conn = self._connections.writer if self._connections.is_ready else None
            if conn is None or moved or alone:
                conn = self._connections.current()
            if alone:
                results = [self._run_alone(conn, group[0])]
            else:
                results = self._transaction(conn, [job.run for job in group])
        except FileMoved:
            self._run_group(group, moved=True)
        except Uncommitted as failed:
            if self._idle_work.drop_index_after(failed.error):
                self._run_group(group)
            else:
                # Do not run the jobs again: the commit may have taken effect nevertheless.
                self._fail(group, failed.error)
        except BaseException as error:  # noqa: BLE001 - the callers receive it
            if not alone and self._idle_work.drop_index_after(error):
                self._run_group(group)
            elif len(group) == 1 or is_locked(error):
                # Do not run the jobs one by one after a lock error, because each job would wait for
                # the lock.
                self._fail(group, error)
            else:
                self._connections.suspect(error)
                for job in group:
                    self._run_group([job])
        else:
            self._deliver([(job, result, None) for job, result in zip(group, results, strict=True)])
            if not alone:
                self._idle_work.record_writes(len(group))

    def _run_alone(self, conn: sqlite3.Connection, job: _Job) -> Any:
        with self._connections.writing:
            end_transaction(conn)
            return job.run(conn)

    def _transaction(
        self, conn: sqlite3.Connection, functions: list[Callable[[sqlite3.Connection], Any]]
    ) -> list[Any]:
        with self._connections.writing:
            end_transaction(conn)
            conn.execute("BEGIN IMMEDIATE")
            try:
                # Check under the lock: a process that replaces the file holds this lock meanwhile.
                if self._connections.is_moved():
                    raise FileMoved
                results = [function(conn) for function in functions]
                _commit(conn)
            except BaseException:
                # On a full disk or an I/O error SQLite may have rolled back by itself.
                if conn.in_transaction:
                    conn.execute("ROLLBACK")
                raise
        return results

    def _fail(self, group: list[_Job], error: BaseException) -> None:
        self._connections.suspect(error)
        path = self._connections.path
        self._deliver([(job, None, journal_error(error, path)) for job in group])

    def _deliver(self, results: list[_Result]) -> None:
        """Give each caller its result. Callers on one event loop share a callback, because waking
        up a loop costs more than the callback's work."""
        by_loop: dict[asyncio.AbstractEventLoop, list[_Result]] = {}
        for result in results:
            loop = result[0].loop
            if loop is None or not self._threaded:
                _deliver_all([result])
            else:
                by_loop.setdefault(loop, []).append(result)
        for loop, its_results in by_loop.items():
            try:
                for start in range(0, len(its_results), DELIVERED_MOST):
                    loop.call_soon_threadsafe(
                        _deliver_all, its_results[start : start + DELIVERED_MOST]
                    )
            except RuntimeError:
                # The loop is closed, so no caller waits for these results.
                continue

    # -- opening and closing ---------------------------------------------------------------------

    async def open(self) -> None:
        """Open the file; create or check its schema. The first write also opens the file.

        Raises:
            JournalError, JournalTooNew, JournalCorrupt: the file cannot be opened as a journal.
        """
        await self.maintain(_only_open)

    def open_blocking(self) -> None:
        """Open the file, from a thread that runs no event loop."""
        self._wait_for(_only_open, (), {}, alone=True)

    async def close(self) -> None:
        """Finish accepted writes, checkpoint, and close the file. A repeated call has no effect."""
        if not self._mark_closed():
            return
        thread = self._thread
        if thread is not None:
            self._waiting.put(None)
            try:
                await shielded(asyncio.wrap_future(self._ended))
            finally:
                thread.join()  # `_ended` is set just before the thread ends
        else:
            self._connections.close()

    def close_blocking(self) -> None:
        """Close the file like `close`, at the end of the process, when no event loop runs."""
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
        # After a fork the connections belong to the parent: closing them could release its locks.
        return was_open and os.getpid() == self._connections.pid


def _running_loop() -> asyncio.AbstractEventLoop:
    try:
        return asyncio.get_running_loop()
    except RuntimeError as error:
        raise RuntimeError(NO_LOOP) from error


def _commit(conn: sqlite3.Connection) -> None:
    try:
        conn.execute("COMMIT")
    except sqlite3.Error as error:
        raise Uncommitted(error) from error


def _deliver_all(results: list[_Result]) -> None:
    for job, result, error in results:
        job.done(result, error)


def _only_open(_: sqlite3.Connection) -> None:
    """Do nothing: any job opens the file."""
