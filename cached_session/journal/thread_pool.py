"""Threads of a journal's own, for what would hold an event loop up.

The pool that a loop brings along is small, and everybody's: tools that an agent runs in threads,
name lookups that hang. A read of the journal must not wait until they have finished.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from cached_session.errors import SessionClosed

__all__ = ["ThreadPool"]

T = TypeVar("T")

MOST = 4
"""Short reads take turns on one connection, and long ones have a thread each: a read waits for
another one only beside three of a whole history."""


class ThreadPool:
    """A few threads, made when they are first needed. Safe to use from any thread."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._closed = False

    async def run(self, work: Callable[..., T], *arguments: Any) -> T:
        """Do something in one of them.

        Raises:
            SessionClosed: they were closed.
        """
        loop = asyncio.get_running_loop()
        with self._guard:
            if self._closed:
                raise SessionClosed("the journal is closed; open a new session")
            if self._pool is None:
                self._pool = ThreadPoolExecutor(MOST, thread_name_prefix="cached-session-aside")
            doing = loop.run_in_executor(self._pool, partial(work, *arguments))
        return await doing

    def close(self) -> None:
        """Take nothing more, and wait until each thread has finished what it does, and itself."""
        with self._guard:
            self._closed, pool = True, self._pool
        if pool is not None:
            pool.shutdown()
