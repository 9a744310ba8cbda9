"""The threads of one journal, for work that would block an event loop.

The default pool of an event loop is small and also runs other work of the program, such as the
tools of an agent and slow name lookups. A read of the journal must not wait for this work.
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
"""Maximum number of threads. Reads of some milliseconds share one connection, so they use one
thread at a time. Three long reads can run in the other threads before any read has to
wait."""


class ThreadPool:
    """A small pool of threads, which start when they are first needed. Safe to use from any
    thread."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._closed = False

    async def run(self, work: Callable[..., T], *arguments: Any) -> T:
        """Run a function in one of the threads and return its result.

        Raises:
            SessionClosed: the pool was closed.
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
        """Accept no more work, and wait until each thread has finished."""
        with self._guard:
            self._closed, pool = True, self._pool
        if pool is not None:
            pool.shutdown()
