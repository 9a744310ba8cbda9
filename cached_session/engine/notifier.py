"""Notification of tasks that wait for news of a session, on any event loop and from any thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from cached_session import fork_safety

__all__ = ["Notifier"]


class Notifier:
    """A registry of waiting tasks, with an event for each. Safe to use from any thread."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        fork_safety.wait_for(self, self._guard)
        self._waiting: dict[str, list[tuple[asyncio.AbstractEventLoop, asyncio.Event]]] = {}

    def __len__(self) -> int:
        with self._guard:
            return sum(map(len, self._waiting.values()))

    @contextmanager
    def waiting(self, session_id: str) -> Iterator[asyncio.Event]:
        """Provide an event that each later `wake` of this session sets.

        To miss no news, check for news after entering the context and before waiting for the event.
        """
        waiter = (asyncio.get_running_loop(), asyncio.Event())
        with self._guard:
            self._waiting.setdefault(session_id, []).append(waiter)
        try:
            yield waiter[1]
        finally:
            with self._guard:
                self._waiting[session_id].remove(waiter)
                if not self._waiting[session_id]:
                    del self._waiting[session_id]

    def wake(self, session_id: str | None = None) -> None:
        """Set the events of a session, or of all sessions if ``session_id`` is None."""
        with self._guard:
            named = self._waiting if session_id is None else {session_id}
            woken = [waiter for name in named for waiter in self._waiting.get(name, ())]
        for loop, event in woken:
            try:
                loop.call_soon_threadsafe(event.set)
            except RuntimeError:
                # The waiter's event loop is closed, so no task waits on it.
                continue
