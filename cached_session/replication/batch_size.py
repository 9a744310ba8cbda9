"""The size of store requests: the largest size that the server answers quickly and accepts. Pure.

Each request waits for the previous request. So on a good link, a backlog is sent in fewer, larger
requests. A larger request has a cost: if its answer is lost, more bytes are sent again, and a slow
link may not transfer it within `SyncOptions.request_timeout` at all. Requests shrink after a
timeout or a slow answer, and grow again after quick answers.
"""

from __future__ import annotations

from dataclasses import dataclass

from cached_session.options import SyncOptions
from cached_session.remote.errors import RemoteError, Verdict

__all__ = ["BatchLimits", "BatchSize"]

FIRST_BYTES = 512 * 1024
"""The largest first request in bytes, while the speed of the link is unknown. A slow mobile link
transfers it in a few seconds."""
LEAST_BYTES = 16 * 1024
QUICK_SECONDS = 1.0
"""The maximum duration of a quick answer, in seconds. A quick answer allows a request of twice the
size, which takes about twice as long."""
TOO_LARGE = 413
RATE_LIMITED = 429


@dataclass(frozen=True)
class BatchLimits:
    """The limits of one store request."""

    bytes: int
    """The largest number of encoded bytes."""
    memories: int


class BatchSize:
    """The size of store requests to one server, learned from its answers."""

    def __init__(self, options: SyncOptions) -> None:
        self._bytes = min(FIRST_BYTES, options.max_batch_bytes)
        self._most_bytes = options.max_batch_bytes
        self._slow_seconds = options.request_timeout / 3
        self._most_memories = options.max_batch_memories
        self._rate_limited: dict[str, int] = {}
        """The largest number of memories in one request, by session. Only sessions with a request
        that was refused by a rate limit have an entry."""

    def limits(self, session_id: str) -> BatchLimits:
        """Return the limits of the next store request of a session."""
        allowed = self._rate_limited.get(session_id, self._most_memories)
        return BatchLimits(self._bytes, min(self._most_memories, allowed))

    def answered(self, session_id: str, size: int, memories: int, seconds: float) -> None:
        """Adapt the limits after the server accepted a request of ``size`` bytes in ``seconds``."""
        if seconds > self._slow_seconds:
            self._shrink(size)
        elif seconds < QUICK_SECONDS:
            self._bytes = min(max(self._bytes, 2 * size), self._most_bytes)
        allowed = self._rate_limited.get(session_id)
        if allowed is not None and memories >= allowed:
            # The server may accept more memories now. Raise the limit by about an eighth to test.
            self._rate_limited[session_id] = allowed + 1 + allowed // 8
            if self._rate_limited[session_id] >= self._most_memories:
                del self._rate_limited[session_id]

    def failed(self, session_id: str, size: int, memories: int, error: RemoteError) -> None:
        """Adapt the limits after a request of ``size`` bytes has failed."""
        if error.verdict is Verdict.UNREACHABLE:
            self._shrink(size)
        elif error.verdict is Verdict.REFUSED and error.status == TOO_LARGE and size > LEAST_BYTES:
            # A proxy refuses requests of this size. Lower the limit for good: otherwise requests
            # would grow back to this size and fail each time.
            self._most_bytes = max(LEAST_BYTES, size // 2)
            self._bytes = min(self._bytes, self._most_bytes)
        if error.status == RATE_LIMITED:
            # The server would never accept a request that is larger than its whole rate limit.
            self._rate_limited[session_id] = max(1, memories // 2)

    def _shrink(self, size: int) -> None:
        # The failure of a request below half the limit does not show that the limit is too high.
        if 2 * size > self._bytes:
            self._bytes = min(self._bytes, max(LEAST_BYTES, size // 2))
