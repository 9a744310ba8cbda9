"""The clock of the server, which tests can move: TTL, decay and sessions depend on it."""

from __future__ import annotations

import threading
import time


class Clock:
    """Unix time that follows the system clock, and that tests can move or freeze.

    Safe to use from any thread. A move takes effect at the next request to the server or
    inspection of the server.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._offset = 0.0
        self._frozen: float | None = None

    def now(self) -> float:
        """Return the current Unix time in seconds."""
        with self._lock:
            return self._now()

    def _now(self) -> float:
        return self._frozen if self._frozen is not None else time.time() + self._offset

    def advance(self, seconds: float) -> float:
        """Move the clock by `seconds` (backwards if negative) and return the new time."""
        with self._lock:
            self._shift(seconds)
            return self._now()

    def set(self, timestamp: float) -> float:
        """Set the clock to `timestamp` (Unix seconds); a frozen clock stays frozen."""
        with self._lock:
            self._shift(timestamp - self._now())
            return self._now()

    def _shift(self, seconds: float) -> None:
        if self._frozen is not None:
            self._frozen += seconds
        else:
            self._offset += seconds

    def freeze(self) -> float:
        """Stop the clock and return its time; `advance` and `set` still move it."""
        with self._lock:
            self._frozen = self._now()
            return self._frozen

    def resume(self) -> None:
        """Let a frozen clock run again, from its current time."""
        with self._lock:
            if self._frozen is not None:
                self._offset = self._frozen - time.time()
                self._frozen = None

    @property
    def is_frozen(self) -> bool:
        """Return whether the clock is frozen."""
        return self._frozen is not None
