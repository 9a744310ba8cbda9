"""A thread with an event loop, for the synchronous methods that frameworks ask for.

It owns the thread and nothing else: sessions and caches stay their owners' to close.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures.thread
import os
import threading
import warnings
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from types import TracebackType
from typing import TypeVar

import anyio
from anyio.from_thread import BlockingPortal

from cached_session import fork_safety
from cached_session.errors import SessionClosed, WouldBlock

__all__ = ["Bridge", "shared"]

T = TypeVar("T")

THREAD = "cached-session-bridge"


class Bridge:
    """Runs asynchronous calls for synchronous callers, on the event loop of one thread of its own.

    The thread starts with the first call and ends with `close`. As long as it lives, so does its
    loop, and with it the background sync of the sessions that were first used through it. Safe to
    use from many threads; their calls run side by side, in no promised order: whoever needs one
    waits for the first call before the next.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        fork_safety.wait_for(self, self._guard)
        self._portal: BlockingPortal | None = None
        self._thread: threading.Thread | None = None
        self._pid = 0
        self._closed = False

    def run(self, call: Callable[..., Awaitable[T]], *args: object) -> T:
        """The result of ``await call(*args)`` on the bridge's loop, or its exception.

        Interrupted by the keyboard, it returns at once and the call goes on in the thread.

        Raises:
            WouldBlock: an event loop runs in the caller's thread, and would stand still meanwhile:
                await the asynchronous method of the same name there.
            SessionClosed: the bridge was closed.
        """
        _refuse_running_loop()
        return self._run(call, args)

    def run_blocking(self, call: Callable[..., Awaitable[T]], *args: object) -> T:
        """As `run`, but lets the caller's event loop stand still meanwhile: for frameworks that
        call synchronous methods from theirs and leave no choice.

        Raises:
            WouldBlock: the caller's loop is the bridge's own: it would wait for itself.
            SessionClosed: the bridge was closed.
        """
        return self._run(call, args)

    def enter(self, resource: AbstractAsyncContextManager[T]) -> AbstractContextManager[T]:
        """``async with resource`` on the bridge's loop, as a synchronous context.

        Raises:
            WouldBlock, SessionClosed: as `run`.
        """
        _refuse_running_loop()
        return self._running().wrap_async_context_manager(resource)

    def close(self) -> None:
        """End the thread; what runs on it is cancelled. Idempotent.

        Close the sessions first: unsent work of one that is still open stays in its journal.

        Raises:
            WouldBlock: called on the bridge's own thread.
        """
        if self._thread is threading.current_thread():
            raise WouldBlock("a bridge cannot be closed from its own thread: it would wait for it")
        with self._guard:
            portal, thread = self._portal, self._thread
            is_running, self._closed = self._is_running(), True
            self._portal = self._thread = None
            if is_running and portal is not None and thread is not None:
                portal.call(portal.stop, True)
                thread.join()

    def __enter__(self) -> Bridge:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if self._is_running():
            warnings.warn(
                f"{self!r} was never closed; use 'with' or call close()",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )

    def _run(self, call: Callable[..., Awaitable[T]], args: tuple[object, ...]) -> T:
        portal = self._running()
        if self._thread is threading.current_thread():
            raise WouldBlock("the bridge's loop would wait for itself: await the call instead")
        try:
            return portal.call(call, *args)
        except (concurrent.futures.CancelledError, RuntimeError) as error:
            if not self._closed:
                raise
            raise SessionClosed("the bridge was closed in the middle of this call") from error

    def _is_running(self) -> bool:
        # In a forked child the parent's thread is not there, and is not waited for.
        return self._portal is not None and self._pid == os.getpid()

    def _running(self) -> BlockingPortal:
        with self._guard:
            if self._closed:
                raise SessionClosed("the bridge was closed; make a new Bridge")
            if self._portal is None or not self._is_running():
                begun: concurrent.futures.Future[BlockingPortal] = concurrent.futures.Future()
                self._thread = threading.Thread(
                    target=_serve, args=(begun,), name=THREAD, daemon=True
                )
                self._thread.start()
                self._portal, self._pid = begun.result(), os.getpid()
            return self._portal


def _serve(begun: concurrent.futures.Future[BlockingPortal]) -> None:
    async def serve() -> None:
        async with BlockingPortal() as portal:
            begun.set_result(portal)
            await portal.sleep_until_stopped()

    try:
        anyio.run(serve)
    except RuntimeError:
        # Its tasks have ended by now. The loop wants a thread to end its pool, and Python 3.12
        # starts none any more while it exits.
        if not _exits:
            raise


def shared() -> Bridge:
    """The bridge of adapters that were given none: one a process, ended when Python exits."""
    global _shared  # noqa: PLW0603 - it belongs to the process, as its threads do
    with _shared_guard:
        if _shared is None:
            _shared = Bridge()
        return _shared


def _refuse_running_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise WouldBlock(
        "an event loop runs in this thread, and a synchronous call would hold it up: await the "
        "asynchronous method instead, or call this one in a thread (asyncio.to_thread)"
    )


_exits = False
_shared: Bridge | None = None
_shared_guard = threading.Lock()


def _forget_parents() -> None:
    """In a forked child: the parent's bridge is not ours, and another thread may have held its
    locks at the fork."""
    global _shared, _shared_guard
    _shared, _shared_guard = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_parents)


def _close_shared() -> None:
    global _exits  # noqa: PLW0603 - there is one exit
    _exits = True
    if _shared is not None:
        _shared.close()


# Before the journals, and before the pools of threads that the replicator uses take no more work:
# only this hook of the standard library comes early enough. Without it a program that closes
# nothing ends with a complaint in the log.
getattr(threading, "_register_atexit", atexit.register)(_close_shared)
