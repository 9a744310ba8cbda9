"""Where a replicator lives: on one event loop at a time, its *host*.

When that loop is gone (``Runner.run_sync`` and ``asyncio.run`` make a new one each time) the next
call that asks for it moves it to its own.
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

STOP_PATIENCE = 5.0
"""Seconds that closing waits for a replicator on another event loop."""


class _Gone(Exception):
    """The replicator has ended, or its event loop has, before the work with it was done."""

    def __init__(self, *, begun: bool) -> None:
        super().__init__("the replicator is gone")
        self.begun = begun


@dataclass
class _Stay:
    """A replicator's stay on one event loop."""

    loop: asyncio.AbstractEventLoop
    spec: RemoteSpec
    ready: asyncio.Future[Replicator]
    watch_interval: float
    task: asyncio.Task[None] | None = None
    pid: int = field(default_factory=os.getpid)
    is_over: bool = False
    _works: list[anyio.CancelScope] = field(default_factory=list)

    def begin(self, life: Coroutine[Any, Any, None]) -> None:
        """Live here from now on."""
        self.task = self.loop.create_task(life, name="cached-session-replicator")
        # Not at the end of that life: a task that is cancelled at once never comes to it.
        self.task.add_done_callback(lambda _: self._let_go())

    def is_alive(self) -> bool:
        return (
            self.task is not None
            and not self.task.done()
            and not self.is_over
            and self.is_turning()
        )

    def is_turning(self) -> bool:
        """Whether somebody runs the event loop."""
        return self.pid == os.getpid() and not self.loop.is_closed() and self.loop.is_running()

    def replicator(self) -> Replicator | None:
        ready = self.ready
        if not ready.done() or ready.cancelled() or ready.exception():
            return None
        return ready.result()

    async def do(self, work: Callable[[Replicator], Coroutine[Any, Any, T]]) -> T:
        """Do something with the replicator, on this event loop, and no longer than it lives.

        Raises:
            _Gone: it has ended.
        """
        await asyncio.wait([self.ready])
        if self.is_over or self.ready.cancelled():
            raise _Gone(begun=False)
        with anyio.CancelScope() as scope:
            self._works.append(scope)
            try:
                return await work(self.ready.result())
            finally:
                self._works.remove(scope)
        raise _Gone(begun=True)

    async def do_from_elsewhere(self, work: Callable[[Replicator], Coroutine[Any, Any, T]]) -> T:
        """The same for another event loop, which waits no longer than this one turns.

        Raises:
            _Gone: the replicator has ended, or the event loop stands still.
        """
        return await self._carry(partial(self.do, work))

    async def _carry(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        outcome: concurrent.futures.Future[T] = concurrent.futures.Future()
        task: asyncio.Task[T] | None = None

        # Nothing is made before it is there: a loop that closes first leaves nothing behind.
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

        here, told = asyncio.get_running_loop(), asyncio.Event()
        outcome.add_done_callback(lambda _: _tell(here, told.set))
        if not _tell(self.loop, begin):
            raise _Gone(begun=False)
        try:
            while not outcome.done() and self.is_turning():
                with anyio.move_on_after(self.watch_interval):
                    await told.wait()
            # Whether it was begun, and whether it was done, is known for certain from here on.
            if outcome.cancel() or not outcome.done():
                raise _Gone(begun=not outcome.cancelled())
            return outcome.result()
        finally:
            if not outcome.cancel() and not outcome.done():
                _tell(self.loop, give_up)

    def dismiss(self) -> None:
        """End a replicator whose event loop stands still, in case that it ever turns again."""
        if self.task is not None and not self.task.done() and not _tell(self.loop, self._end):
            log.debug("the replicator's event loop is gone, and the replicator with it")

    async def stop(self) -> None:
        """End the replicator and wait until its connections are closed."""
        task = self.task
        if task is None or task.done() or not self.is_turning():
            # Where nobody turns the loop, its task can neither run nor end: we let go of the lock.
            return

        async def ended() -> None:
            self._end()
            await asyncio.wait([task])

        async def ended_elsewhere() -> None:
            # A loop that is held up, or has stopped in the middle, must not hold up a close
            # elsewhere: the task ends when its loop turns again.
            with suppress(_Gone), anyio.move_on_after(STOP_PATIENCE):
                await self._carry(ended)

        is_here = self.loop is asyncio.get_running_loop()
        await shielded(asyncio.ensure_future(ended() if is_here else ended_elsewhere()))

    def _end(self) -> None:
        self._let_go()
        if self.task is not None:
            self.task.cancel()

    def _let_go(self) -> None:
        """Whatever waits for the replicator, or works with it, has to go on with another one."""
        self.is_over = True
        if not self.ready.done():
            self.ready.cancel()
        for scope in list(self._works):
            scope.cancel()


def _tell(loop: asyncio.AbstractEventLoop, message: Callable[[], object]) -> bool:
    """Have another event loop do something; False if it is closed."""
    try:
        loop.call_soon_threadsafe(message)
    except RuntimeError:
        return False
    return True


class LoopHost:
    """Keeps one replicator alive, and carries calls to it. For any event loop and thread."""

    def __init__(
        self,
        name: str,
        guard: threading.RLock,
        wanted: Callable[[], RemoteSpec | None],
        settle_in: Callable[[RemoteSpec], Coroutine[Any, Any, Replicator]],
        *,
        watch_interval: float,
    ) -> None:
        """``wanted`` says which server to talk to, if any, and changes under ``guard`` only;
        ``settle_in`` makes a replicator for the running event loop; ``watch_interval``: seconds
        between looks whether a loop that somebody waits for is still there."""
        self._name = name
        self._guard = guard
        self._wanted = wanted
        self._start = settle_in
        self._watch_interval = watch_interval
        self._stay: _Stay | None = None

    @property
    def spec(self) -> RemoteSpec | None:
        """The server that the replicator talks to; None if there is no replicator."""
        stay = self._stay
        return stay.spec if stay is not None else None

    def keep(self) -> None:
        """Make sure that the replicator lives, on this event loop if it has none. Nothing happens
        without a server."""
        stay = self._stay
        if stay is not None and stay.is_alive():
            return
        with self._guard:
            stay = self._stay
            spec = self._wanted()
            if spec is None or (stay is not None and stay.is_alive()):
                return
            if stay is not None:
                stay.dismiss()
            loop = asyncio.get_running_loop()
            self._stay = stay = _Stay(loop, spec, loop.create_future(), self._watch_interval)
            stay.begin(self._live(stay))

    async def _live(self, stay: _Stay) -> None:
        try:
            replicator = await self._start(stay.spec)
            if not stay.ready.done():
                stay.ready.set_result(replicator)
            await replicator.run()
        except Exception as error:  # noqa: BLE001 - whatever it was: told, logged, begun again
            if not stay.ready.done():
                stay.ready.set_exception(error)
                stay.ready.exception()  # seen: whoever waits for it is told as well
            log.exception("the replicator of %s has stopped; the next call starts it", self._name)

    def leave(self) -> Callable[[], Coroutine[Any, Any, None]] | None:
        """Detach the replicator. Returns a coroutine function that stops it; the caller must await
        it."""
        with self._guard:
            stay, self._stay = self._stay, None
        return None if stay is None else stay.stop

    def replicator(self) -> Replicator | None:
        """The replicator, if it has settled in."""
        stay = self._stay
        return None if stay is None else stay.replicator()

    async def do(
        self,
        work: Callable[[Replicator], Coroutine[Any, Any, T]],
        *,
        in_doubt: SyncError | None = None,
    ) -> T:
        """Do something with the replicator, on its own event loop; again with the next one, if that
        one ends in the middle of it. What must not be done again says what to raise instead.

        Raises:
            SyncError: there is no server; or ``in_doubt``.
            SessionClosed: the last session with a server was closed in the middle of it.
        """
        has_left = False
        while True:
            self.keep()
            stay = self._stay
            if stay is None and has_left:
                raise SessionClosed("this session was closed in the middle of the call")
            if stay is None:
                raise SyncError(
                    "this session has no server; make it with CachedSession.from_url, "
                    "or pass client"
                )
            is_here = stay.loop is asyncio.get_running_loop()
            try:
                return await (stay.do(work) if is_here else stay.do_from_elsewhere(work))
            except _Gone as gone:
                has_left = True
                if gone.begun and in_doubt is not None:
                    raise in_doubt from None

    def tell(self, message: Callable[[Replicator], None]) -> None:
        """Tell the replicator something, from any thread; nothing happens if there is none."""
        stay = self._stay
        if stay is None:
            return

        def deliver() -> None:
            replicator = stay.replicator()
            if replicator is not None and self._stay is stay:
                message(replicator)

        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if stay.loop is running:
            deliver()
            return
        if not _tell(stay.loop, deliver):
            log.debug("the replicator's event loop is gone; the next call makes a new loop_host")
