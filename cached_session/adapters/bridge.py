"""A thread with an event loop, on which synchronous methods of frameworks run asynchronous calls.

A bridge owns only the thread. The sessions and caches that are used through a bridge are closed by
their owners.
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

__all__ = ["Bridge", "shared_bridge"]

T = TypeVar("T")

THREAD_NAME = "cached-session-bridge"


class Bridge:
    """A runner of asynchronous calls for synchronous callers, with its own thread and event loop.

    The thread starts with the first call and ends with `close`. Until `close`, the loop runs, and
    with it the background sync of the sessions that were first used through the bridge. Threads
    may share a bridge: their calls run concurrently, in no defined order. To order two calls, wait
    for the end of the first.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        fork_safety.wait_for(self, self._guard)
        self._portal: BlockingPortal | None = None
        self._thread: threading.Thread | None = None
        self._pid = 0
        self._closed = False

    def run(self, call: Callable[..., Awaitable[T]], *args: object) -> T:
        """Run ``await call(*args)`` on the bridge's loop; return its result or raise its exception.

        A KeyboardInterrupt ends the wait immediately; the call continues in the thread.

        Raises:
            WouldBlock: an event loop runs in the caller's thread and would be blocked. Await the
                asynchronous method on that loop instead.
            SessionClosed: the bridge was closed.
        """
        _refuse_running_loop()
        return self.run_blocking(call, *args)

    def run_blocking(self, call: Callable[..., Awaitable[T]], *args: object) -> T:
        """Run ``await call(*args)`` as `run`, even if an event loop runs in the caller's thread.

        The caller's loop is blocked until the call ends. Use this method for frameworks that call
        synchronous methods on their event loop.

        Raises:
            WouldBlock: the caller runs on the bridge's own loop, which would wait for itself.
            SessionClosed: the bridge was closed.
        """
        portal = self._start()
        if self._thread is threading.current_thread():
            raise WouldBlock("the bridge's loop would wait for itself: await the call instead")
        try:
            return portal.call(call, *args)
        except (concurrent.futures.CancelledError, RuntimeError) as error:
            if not self._closed:
                raise
            raise SessionClosed("the bridge was closed before this call ended") from error

    def enter(self, resource: AbstractAsyncContextManager[T]) -> AbstractContextManager[T]:
        """Return a synchronous context manager that runs ``async with resource`` on the bridge's
        loop.

        Raises:
            WouldBlock, SessionClosed: as `run`.
        """
        _refuse_running_loop()
        return self._start().wrap_async_context_manager(resource)

    def close(self) -> None:
        """Cancel the calls that still run, and end the thread. A repeated call has no effect.

        Close the sessions first. Unsent operations of an open session stay in its journal.

        Raises:
            WouldBlock: called on the bridge's own thread.
        """
        if self._thread is threading.current_thread():
            raise WouldBlock(
                "a bridge cannot be closed from its own thread: it would wait for itself"
            )
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

    def _is_running(self) -> bool:
        # A forked child inherits the attributes but not the thread.
        return self._portal is not None and self._pid == os.getpid()

    def _start(self) -> BlockingPortal:
        """Return the portal, after starting the thread if it does not run in this process."""
        with self._guard:
            if self._closed:
                raise SessionClosed("the bridge was closed; create a new Bridge")
            if self._portal is None or not self._is_running():
                self._portal, self._thread = _start_thread()
                self._pid = os.getpid()
            return self._portal


def _start_thread() -> tuple[BlockingPortal, threading.Thread]:
    # `anyio.from_thread.start_blocking_portal` runs the same portal, but its context manager is a
    # generator that stops the portal and joins the thread when it is garbage-collected. In a forked
    # child, and at the end of a program that did not close its bridge, the thread does not run any
    # more, so that the join waits forever (anyio 4.16).
    started: concurrent.futures.Future[BlockingPortal] = concurrent.futures.Future()
    thread = threading.Thread(target=_run_loop, args=(started,), name=THREAD_NAME, daemon=True)
    thread.start()
    return started.result(), thread


def _run_loop(started: concurrent.futures.Future[BlockingPortal]) -> None:
    async def serve() -> None:
        async with BlockingPortal() as portal:
            started.set_result(portal)
            await portal.sleep_until_stopped()

    try:
        anyio.run(serve)
    except BaseException as error:
        if not started.done():
            started.set_exception(error)  # otherwise the starting thread would wait forever
        elif not (_is_exiting and isinstance(error, RuntimeError)):
            raise
        # Ignore this RuntimeError, because all tasks have ended. The loop starts a thread to end
        # its thread pool. While Python 3.12 or later exits, it refuses to start threads.


def shared_bridge() -> Bridge:
    """Return the bridge that adapters use by default. It closes when the process exits."""
    return _shared


def _refuse_running_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise WouldBlock(
        "an event loop runs in this thread, and a synchronous call would block it: await the "
        "asynchronous method instead, or call this one in a thread (asyncio.to_thread)"
    )


_is_exiting = False
_shared = Bridge()


def _replace_shared() -> None:
    # Create a new bridge: a thread that the fork did not copy may hold the old bridge's lock.
    global _shared  # noqa: PLW0603 - one bridge for the process
    _shared = Bridge()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_replace_shared)


def _close_shared() -> None:
    global _is_exiting  # noqa: PLW0603 - a process exits once
    _is_exiting = True
    _shared.close()


# The bridge must close before the journals do, and before the thread pools that the replicator uses
# refuse new work. Only this private hook of the standard library runs early enough. Without it, a
# program that closes nothing logs an error at exit.
getattr(threading, "_register_atexit", atexit.register)(_close_shared)
