"""A clock that stands still until a test moves it."""

from __future__ import annotations

import random
import threading

from cached_session.devserver import Clock
from cached_session.runtime import Runtime

__all__ = ["ManualClock"]

START = 1_767_225_600.0
"""2026-01-01T00:00:00Z: any moment does; the same one makes a run repeatable."""


class ManualClock:
    """Time that passes only when told to; safe to use from any thread.

    What counts by it: stamps, pauses after failures, intervals between pulls and audits. What does
    not, because it waits for something real: `hydrate_timeout`, `close_timeout`, the timeouts of
    `sync` and `flush`, and those of sockets. The background task looks at the clock every
    ``SyncOptions.watch_interval`` seconds of real time, so a pause that has been passed over ends
    within that. A `sync` or `flush` that waits already goes by the pause that it found: move the
    clock before the call.
    """

    def __init__(self, start: float = START) -> None:
        self._lock = threading.Lock()
        self._wall = start
        self._steady = 0.0
        self._servers: list[Clock] = []

    def now(self) -> float:
        """Unix seconds."""
        with self._lock:
            return self._wall

    def advance(self, seconds: float) -> None:
        """Let time pass: for the devices, and for the servers that `drive` named.

        Raises:
            ValueError: ``seconds`` is negative: time that passes does not go back, see `set`.
        """
        if seconds < 0:
            raise ValueError(f"advance({seconds}) goes back; set() puts the wall clock wrong")
        with self._lock:
            self._wall += seconds
            self._steady += seconds
            for server in self._servers:
                server.advance(seconds)

    def set(self, timestamp: float) -> None:
        """Put the devices' wall clock to another time, as a wrong battery or a person does. No time
        passes, and servers keep theirs."""
        with self._lock:
            self._wall = timestamp

    def drive(self, server: Clock) -> None:
        """Have a server's clock stand at this time and pass with it from now on."""
        with self._lock:
            server.freeze()
            server.set(self._wall)
            self._servers.append(server)

    def runtime(self, seed: int = 0) -> Runtime:
        """What sessions and caches take as ``runtime``: this clock, and jitter from a seed."""
        return Runtime(
            wall_ms=lambda: int(self.now() * 1000),
            monotonic=self._monotonic,
            random=random.Random(seed),
        )

    def _monotonic(self) -> float:
        with self._lock:
            return self._steady
