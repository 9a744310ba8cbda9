"""The size of store requests: as large as the server answers quickly and its rate limit allows.

Each request waits for the one before it, so on a good link a backlog is sent in fewer, larger
requests. The cost of a larger one: more is sent again where its answer is lost, and a slow link may
not transfer it within `SyncOptions.request_timeout` at all. After such a failure requests are
smaller, and larger again once answers are quick. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass

from cached_session.options import SyncOptions
from cached_session.remote.errors import RemoteError, Verdict

__all__ = ["BatchLimits", "BatchSize"]

FIRST_BYTES = 512 * 1024
"""A few seconds on a slow mobile link. Nothing is known of the link yet."""
LEAST_BYTES = 16 * 1024
QUICK_SECONDS = 1.0
"""An answer within this time is quick: a request of twice the size takes about twice as long."""
TOO_LARGE = 413
RATE_LIMITED = 429


@dataclass(frozen=True)
class BatchLimits:
    """The limits of one store request."""

    bytes: int
    """Encoded bytes."""
    memories: int


class BatchSize:
    """The size of store requests to one server, learned from its answers."""

    def __init__(self, options: SyncOptions) -> None:
        self._bytes = min(FIRST_BYTES, options.max_batch_bytes)
        self._most_bytes = options.max_batch_bytes
        self._slow_seconds = options.request_timeout / 3
        self._most_memories = options.max_batch_memories
        self._rate_limited: dict[str, int] = {}
        """The memories of one request where a rate limit has refused more, by session."""

    def limits(self, session_id: str) -> BatchLimits:
        """Return the limits of the next store request of a session."""
        allowed = self._rate_limited.get(session_id, self._most_memories)
        return BatchLimits(self._bytes, min(self._most_memories, allowed))

    def answered(self, session_id: str, size: int, memories: int, seconds: float) -> None:
        """Adapt to a request of ``size`` bytes that the server took after ``seconds``."""
        if seconds > self._slow_seconds:
            self._shrink(size)
        elif seconds < QUICK_SECONDS:
            self._bytes = min(max(self._bytes, 2 * size), self._most_bytes)
        allowed = self._rate_limited.get(session_id)
        if allowed is not None and memories >= allowed:
            # Larger requests are tried again, little by little.
            self._rate_limited[session_id] = allowed + 1 + allowed // 8
            if self._rate_limited[session_id] >= self._most_memories:
                del self._rate_limited[session_id]

    def failed(self, session_id: str, size: int, memories: int, error: RemoteError) -> None:
        """Adapt to a request that the server did not take."""
        if error.verdict is Verdict.UNREACHABLE:
            self._shrink(size)
        elif error.verdict is Verdict.REFUSED and error.status == TOO_LARGE and size > LEAST_BYTES:
            # A proxy in between takes no more. This limit stays: each growth would run into it.
            self._most_bytes = max(LEAST_BYTES, size // 2)
            self._bytes = min(self._bytes, self._most_bytes)
        if error.status == RATE_LIMITED:
            # A request that is larger than the whole rate limit would never be taken.
            self._rate_limited[session_id] = max(1, memories // 2)

    def _shrink(self, size: int) -> None:
        # The failure of a small request does not show that larger ones fail as well.
        if 2 * size > self._bytes:
            self._bytes = min(self._bytes, max(LEAST_BYTES, size // 2))
