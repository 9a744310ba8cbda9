"""Where a replicator lives: on one event loop at a time, its *home*.

When that loop is gone (``Runner.run_sync`` and ``asyncio.run`` make a new one each time) the next
call that asks for it moves it to its own.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from cached_session.errors import SyncError
from cached_session.journal.connection import settle
from cached_session.reach import RemoteSpec
from cached_session.replication.link import log
from cached_session.replication.worker import Replicator

__all__ = ["Home"]

T = TypeVar("T")

STOP_PATIENCE = 5.0
"""Seconds that closing waits for a replicator on another event loop."""


@dataclass
class _Stay:
    """A replicator's stay on one event loop."""

    loop: asyncio.AbstractEventLoop
    spec: RemoteSpec
    ready: asyncio.Future[Replicator]
    task: asyncio.Task[None] | None = None
    pid: int = field(default_factory=os.getpid)

    def is_alive(self) -> bool:
        return (
            self.task is not None
            and not self.task.done()
            and self.pid == os.getpid()
            and not self.loop.is_closed()
            and self.loop.is_running()
        )

    def replicator(self) -> Replicator | None:
        ready = self.ready
        if not ready.done() or ready.cancelled() or ready.exception():
            return None
        return ready.result()

    async def do(self, work: Callable[[Replicator], Coroutine[Any, Any, T]]) -> T:
        return await work(await asyncio.shield(self.ready))

    def dismiss(self) -> None:
        """End a replicator whose event loop stands still, in case that it ever turns again."""
        if self.task is not None and not self.task.done():
            try:
                self.loop.call_soon_threadsafe(self.task.cancel)
            except RuntimeError:
                log.debug("the replicator's event loop is gone, and the replicator with it")

    async def stop(self) -> None:
        """End the replicator and wait until its connections are closed."""
        task = self.task
        if task is None or task.done() or self.loop.is_closed() or self.pid != os.getpid():
            return
        if self.loop is asyncio.get_running_loop():
            task.cancel()
            await settle(asyncio.ensure_future(asyncio.wait([task])))
            return
        if not self.loop.is_running():
            # Nobody turns that loop: its task can neither run nor end. The lock is let go by us.
            return

        async def end() -> None:
            task.cancel()
            await asyncio.wait([task])

        ended = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(end(), self.loop))
        # A loop that is held up, or has stopped in the middle, must not hold up a close elsewhere:
        # the task ends when its loop turns again.
        waited = asyncio.ensure_future(asyncio.wait([ended], timeout=STOP_PATIENCE))
        try:
            await settle(waited)
        finally:
            ended.cancel()


class Home:
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
        self._settle_in = settle_in
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
            self._stay = stay = _Stay(loop, spec, loop.create_future())
            stay.task = loop.create_task(self._live(stay), name="cached-session-replicator")

    async def _live(self, stay: _Stay) -> None:
        try:
            replicator = await self._settle_in(stay.spec)
            if not stay.ready.done():
                stay.ready.set_result(replicator)
            await replicator.run()
        except Exception as error:  # noqa: BLE001 - whatever it was: told, logged, begun again
            if not stay.ready.done():
                stay.ready.set_exception(error)
                stay.ready.exception()  # seen: whoever waits for it is told as well
            log.exception("the replicator of %s has stopped; the next call starts it", self._name)
        finally:
            if not stay.ready.done():
                stay.ready.cancel()

    def leave(self) -> Callable[[], Coroutine[Any, Any, None]] | None:
        """No home any more from here on; what is returned ends the replicator that lived there,
        and must be awaited."""
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
        repeatable: bool = True,
    ) -> T:
        """Do something with the replicator, on its own event loop; again in the next home, if that
        loop is gone in the middle of it and the work can be repeated.

        Raises:
            SyncError: there is no server, or the loop is gone and the work cannot be repeated.
        """
        while True:
            self.keep()
            stay = self._stay
            if stay is None:
                raise SyncError(
                    "this session has no server; make it with CachedSession.from_url, "
                    "or pass client"
                )
            if stay.loop is asyncio.get_running_loop():
                return await stay.do(work)
            going = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(stay.do(work), stay.loop))
            try:
                while not going.done() and stay.is_alive():
                    await asyncio.wait([going], timeout=self._watch_interval)
                if going.done() and not going.cancelled():
                    return going.result()
            finally:
                going.cancel()
            if not repeatable:
                raise SyncError("the event loop that syncs was closed in the middle of this call")

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
        try:
            stay.loop.call_soon_threadsafe(deliver)
        except RuntimeError:
            log.debug("the replicator's event loop is gone; the next call makes a new home")
