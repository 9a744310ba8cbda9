"""A clock that a test moves: `ManualClock`, for sessions and for the development server."""

from __future__ import annotations

import random
import threading

from cached_session.devserver import Clock
from cached_session.runtime import Runtime

__all__ = ["ManualClock"]

START = 1_767_225_600.0
"""Unix time of 2026-01-01T00:00:00Z. A fixed time makes runs repeatable; the value is arbitrary."""


class ManualClock:
    """A clock that moves only when a test moves it. Safe to use from any thread.

    Stamps, pauses after failures, and the intervals between pulls and audits use this clock. The
    following use real time, because they limit real waits: `hydrate_timeout`, `close_timeout`, the
    timeouts of `sync` and `flush`, and socket timeouts.

    The background task reads the clock every ``SyncOptions.watch_interval`` seconds of real time,
    so it can notice the end of a pause up to that many seconds late. A `sync` or `flush` waits for
    the pause that was in effect when it was called: move the clock before the call.
    """

    def __init__(self, start: float = START) -> None:
        self._lock = threading.Lock()
        self._wall = start
        self._monotonic_seconds = 0.0
        self._servers: list[Clock] = []

    def now(self) -> float:
        """Return the current Unix time in seconds."""
        with self._lock:
            return self._wall

    def advance(self, seconds: float) -> None:
        """Move the time of the devices, and of the servers that were passed to `drive`, forward.

        Raises:
            ValueError: ``seconds`` is negative. Use `set` to turn the wall clock back.
        """
        if seconds < 0:
            raise ValueError(f"advance({seconds}) goes back; use set() to turn back the clock")
        with self._lock:
            self._wall += seconds
            self._monotonic_seconds += seconds
            for server in self._servers:
                server.advance(seconds)

    def set(self, timestamp: float) -> None:
        """Set the wall clock of the devices, as a user of a device can.

        The monotonic clock and the clocks of servers do not change.
        """
        with self._lock:
            self._wall = timestamp

    def drive(self, server: Clock) -> None:
        """Freeze a server's clock at the time of this clock; from now on, `advance` moves both."""
        with self._lock:
            server.freeze()
            server.set(self._wall)
            self._servers.append(server)

    def runtime(self, seed: int = 0) -> Runtime:
        """Return a ``runtime`` for sessions and caches: this clock and a seed for jitter."""
        return Runtime(
            wall_ms=lambda: int(self.now() * 1000),
            monotonic=self._monotonic,
            random=random.Random(seed),
        )

    def _monotonic(self) -> float:
        with self._lock:
            return self._monotonic_seconds
