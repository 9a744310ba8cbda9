"""The server's clock, which tests move: TTL, decay and sessions all live on it."""

from __future__ import annotations

import threading
import time


class Clock:
    """Unix time that runs with the machine's clock until it is frozen, and can be moved.

    Safe to use from any thread. Moving it takes effect at the server's next request or inspection.
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
        """Move by `seconds` (backwards when negative) and return the new time."""
        with self._lock:
            self._shift(seconds)
            return self._now()

    def set(self, timestamp: float) -> float:
        """Jump to `timestamp` (Unix seconds); the clock keeps running or stays frozen as it was."""
        with self._lock:
            self._shift(timestamp - self._now())
            return self._now()

    def _shift(self, seconds: float) -> None:
        if self._frozen is not None:
            self._frozen += seconds
        else:
            self._offset += seconds

    def freeze(self) -> float:
        """Stop the clock where it is; `advance` and `set` still move it."""
        with self._lock:
            self._frozen = self._now()
            return self._frozen

    def resume(self) -> None:
        """Let a frozen clock run on from where it stands."""
        with self._lock:
            if self._frozen is not None:
                self._offset = self._frozen - time.time()
                self._frozen = None

    @property
    def is_frozen(self) -> bool:
        """Whether the clock stands still."""
        return self._frozen is not None
