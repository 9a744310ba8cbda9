"""The clock that measures pauses, claims and gaps."""

from __future__ import annotations

from cached_session.runtime import Runtime

__all__ = ["SteadyClock"]


class SteadyClock:
    """The wall clock in milliseconds, corrected if it stops or is set back.

    Pauses are stored, and the next process can compare them only with the wall clock. But a pause
    must also end if the wall clock stops or is set back. While the wall clock is behind, this clock
    adds the time of the monotonic clock to the last correct wall time.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._last_ms = runtime.wall_ms()
        self._last_moment = runtime.monotonic()

    def now_ms(self) -> int:
        """Return the time in Unix milliseconds. A result is never less than an earlier result."""
        moment = self._runtime.monotonic()
        steady = self._last_ms + int((moment - self._last_moment) * 1000)
        now = self._runtime.wall_ms()
        if now >= steady:
            self._last_ms, self._last_moment = now, moment
        return max(now, steady)
