"""The event loop that the replicator runs on, and calls to it from other loops.

A replicator runs on one event loop. ``Runner.run_sync`` and ``asyncio.run`` make a new loop each
time. If the replicator's loop has ended, the next call that needs a replicator starts a new
replicator on its own loop.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import anyio

from cached_session.errors import SessionClosed, SyncError
from cached_session.journal.journal import shielded
from cached_session.remote.connect import RemoteSpec
from cached_session.replication.context import log
from cached_session.replication.replicator import Replicator

__all__ = ["LoopHost"]

T = TypeVar("T")

Work = Callable[[Replicator], Coroutine[Any, Any, T]]

STOP_SECONDS = 5.0
"""Maximum number of seconds that a close waits for a replicator on another event loop to end."""


class _Gone(Exception):
    """The replicator or its event loop ended before the requested work was done."""

    def __init__(self, *, begun: bool) -> None:
        super().__init__("the replicator is gone")
        self.begun = begun


@dataclass
class _Run:
    """One run of a replicator on one event loop."""

    loop: asyncio.AbstractEventLoop
    spec: RemoteSpec
    ready: asyncio.Future[Replicator]
    watch_interval: float
    task: asyncio.Task[None] | None = None
    pid: int = field(default_factory=os.getpid)
    is_over: bool = False
    _scopes: list[anyio.CancelScope] = field(default_factory=list)
    """Cancel scopes of the work that is running with the replicator."""

    def begin(self, life: Coroutine[Any, Any, None]) -> None:
        """Start the replicator's task."""
        self.task = self.loop.create_task(life, name="cached-session-replicator")
        # Use a callback, because a task that is cancelled immediately never runs its own `finally`.
        self.task.add_done_callback(lambda _: self._end_work())

    def is_alive(self) -> bool:
        """Return whether the replicator can still do work."""
        return (
            self.task is not None
            and not self.task.done()
            and not self.is_over
            and self.is_loop_running()
        )

    def is_loop_running(self) -> bool:
        """Return whether the event loop is running, in this process."""
        return self.pid == os.getpid() and not self.loop.is_closed() and self.loop.is_running()

    def replicator(self) -> Replicator | None:
        """Return the replicator if it has started."""
        ready = self.ready
        if not ready.done() or ready.cancelled() or ready.exception():
            return None
        return ready.result()

    async def do(self, work: Work[T]) -> T:
        """Run work with the replicator. Call this on the replicator's event loop.

        Raises:
            _Gone: the replicator has ended, before the work or during it.
        """
        await asyncio.wait([self.ready])
        if self.is_over or self.ready.cancelled():
            raise _Gone(begun=False)
        with anyio.CancelScope() as scope:
            self._scopes.append(scope)
            try:
                return await work(self.ready.result())
            finally:
                self._scopes.remove(scope)
        raise _Gone(begun=True)

    async def do_from_elsewhere(self, work: Work[T]) -> T:
        """Run work with the replicator. Call this from another event loop.

        Raises:
            _Gone: the replicator has ended, or its event loop has stopped.
        """
        return await self._call(partial(self.do, work))

    async def _call(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine on the replicator's event loop, and return its result on the calling
        event loop."""
        outcome: concurrent.futures.Future[T] = concurrent.futures.Future()
        task: asyncio.Task[T] | None = None

        # Make the coroutine on the replicator's loop. If it was made here and that loop closed
        # first, the coroutine would never be awaited.
        def begin() -> None:
            nonlocal task
            if outcome.set_running_or_notify_cancel():
                task = self.loop.create_task(work())
                task.add_done_callback(end)

        def end(done: asyncio.Task[T]) -> None:
            error = _Gone(begun=True) if done.cancelled() else done.exception()
            if error is not None:
                outcome.set_exception(error)
            else:
                outcome.set_result(done.result())

        def give_up() -> None:
            if task is not None:
                task.cancel()

        here, finished = asyncio.get_running_loop(), asyncio.Event()
        outcome.add_done_callback(lambda _: _call_soon(here, finished.set))
        if not _call_soon(self.loop, begin):
            raise _Gone(begun=False)
        try:
            while not outcome.done() and self.is_loop_running():
                with anyio.move_on_after(self.watch_interval):
                    await finished.wait()
            # `cancel` succeeds only if the work has not begun, so `begun` is reliable.
            if outcome.cancel() or not outcome.done():
                raise _Gone(begun=not outcome.cancelled())
            return outcome.result()
        finally:
            if not outcome.cancel() and not outcome.done():
                _call_soon(self.loop, give_up)

    def dismiss(self) -> None:
        """End a replicator on a stopped event loop, in case the loop runs again later."""
        if self.task is not None and not self.task.done() and not _call_soon(self.loop, self._end):
            log.debug("the replicator's event loop is closed, and the replicator has ended with it")

    async def stop(self) -> None:
        """End the replicator and wait until its connections are closed."""
        task = self.task
        if task is None or task.done() or not self.is_loop_running():
            # A task on a stopped loop can neither run nor end. The engine releases the file lock.
            return

        async def end_here() -> None:
            self._end()
            await asyncio.wait([task])

        async def end_elsewhere() -> None:
            # A blocked or stopped loop must not block a close on this loop. The replicator's task
            # ends when its loop runs again.
            with suppress(_Gone), anyio.move_on_after(STOP_SECONDS):
                await self._call(end_here)

        is_here = self.loop is asyncio.get_running_loop()
        await shielded(asyncio.ensure_future(end_here() if is_here else end_elsewhere()))

    def _end(self) -> None:
        self._end_work()
        if self.task is not None:
            self.task.cancel()

    def _end_work(self) -> None:
        """Cancel all work that waits for this replicator or uses it.

        `LoopHost.run` then repeats the work with the next replicator.
        """
        self.is_over = True
        if not self.ready.done():
            self.ready.cancel()
        for scope in list(self._scopes):
            scope.cancel()


def _call_soon(loop: asyncio.AbstractEventLoop, function: Callable[[], object]) -> bool:
    """Schedule a function on an event loop; return False if the loop is closed."""
    try:
        loop.call_soon_threadsafe(function)
    except RuntimeError:
        return False
    return True


class LoopHost:
    """The host of one replicator: keeps the replicator running, and runs work on its event loop.

    The class is safe to use from any event loop and thread.
    """

    def __init__(
        self,
        name: str,
        guard: threading.RLock,
        wanted: Callable[[], RemoteSpec | None],
        start: Callable[[RemoteSpec], Coroutine[Any, Any, Replicator]],
        *,
        watch_interval: float,
    ) -> None:
        """Make a host that has no replicator yet.

        Args:
            name: the journal's path, for log messages.
            guard: the lock that protects the result of ``wanted``.
            wanted: returns the connection settings of the server to use, or None.
            start: makes a replicator for the running event loop.
            watch_interval: seconds between two checks that the replicator's event loop is still
                running, while a call from another loop waits for it.
        """
        self._name = name
        self._guard = guard
        self._wanted = wanted
        self._start = start
        self._watch_interval = watch_interval
        self._run: _Run | None = None

    @property
    def spec(self) -> RemoteSpec | None:
        """Connection settings that the replicator uses; None if there is no replicator."""
        run = self._run
        return run.spec if run is not None else None

    def ensure_running(self) -> None:
        """Start the replicator on the calling event loop if it is not running.

        Without a server, do nothing.
        """
        run = self._run
        if run is not None and run.is_alive():
            return
        with self._guard:
            run = self._run
            spec = self._wanted()
            if spec is None or (run is not None and run.is_alive()):
                return
            if run is not None:
                run.dismiss()
            loop = asyncio.get_running_loop()
            self._run = run = _Run(loop, spec, loop.create_future(), self._watch_interval)
            run.begin(self._live(run))

    async def _live(self, run: _Run) -> None:
        try:
            replicator = await self._start(run.spec)
            if not run.ready.done():
                run.ready.set_result(replicator)
            await replicator.run()
        except Exception as error:  # noqa: BLE001 - any error is logged; the next call starts again
            if not run.ready.done():
                run.ready.set_exception(error)
                run.ready.exception()  # mark as retrieved, so that asyncio does not log it as well
            log.exception("the replicator of %s has stopped; the next call starts it", self._name)

    def detach(self) -> Callable[[], Coroutine[Any, Any, None]] | None:
        """Detach the replicator, and return a coroutine function that stops it.

        The caller must call and await that function. Return None if there is no replicator.
        """
        with self._guard:
            run, self._run = self._run, None
        return None if run is None else run.stop

    def replicator(self) -> Replicator | None:
        """Return the replicator if it has started."""
        run = self._run
        return None if run is None else run.replicator()

    async def run(self, work: Work[T], *, in_doubt: SyncError | None = None) -> T:
        """Run work with the replicator, on the replicator's event loop.

        If the replicator ends before the work is done, repeat the work with the next replicator.
        For work that must not be done twice, pass ``in_doubt``: the call raises that error if the
        work had begun.

        Raises:
            SyncError: there is no server; or ``in_doubt``.
            SessionClosed: the last session with a server was closed during the work.
        """
        was_interrupted = False
        while True:
            self.ensure_running()
            run = self._run
            if run is None and was_interrupted:
                raise SessionClosed("this session was closed during the call; open a new session")
            if run is None:
                raise SyncError(
                    "this session has no server; create it with CachedSession.from_url, "
                    "or pass client"
                )
            is_here = run.loop is asyncio.get_running_loop()
            try:
                return await (run.do(work) if is_here else run.do_from_elsewhere(work))
            except _Gone as gone:
                was_interrupted = True
                if gone.begun and in_doubt is not None:
                    raise in_doubt from None

    def send(self, message: Callable[[Replicator], None]) -> None:
        """Call ``message`` with the replicator, on the replicator's event loop.

        Without a replicator, do nothing. Safe to call from any thread.
        """
        run = self._run
        if run is None:
            return

        def deliver() -> None:
            replicator = run.replicator()
            if replicator is not None and self._run is run:
                message(replicator)

        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if run.loop is running:
            deliver()
            return
        if not _call_soon(run.loop, deliver):
            log.debug("the replicator's event loop is closed; the next call starts another one")
