"""How large a store request may be: as large as answers come quickly.

Each request waits for the one before it, so on a good link a backlog is carried in fewer, larger
ones. What a larger one costs is that more is sent again where its answer is lost, and that a slow
link may not carry it within `SyncOptions.request_timeout` at all: after such a failure smaller ones
are sent, down to what a bad link carries, and larger ones again once answers are quick.
"""

from __future__ import annotations

from cached_session.options import SyncOptions
from cached_session.remote.errors import RemoteError, Verdict

__all__ = ["BatchSize"]

FIRST_BYTES = 512 * 1024
"""A few seconds on a slow mobile link: nothing is known of the link yet."""
LEAST_BYTES = 16 * 1024
QUICK = 1.0
"""Seconds within which an answer has come quickly: twice the size takes about twice as long."""
TOO_LARGE = 413


class BatchSize:
    """The size of store requests to one server, in encoded bytes."""

    def __init__(self, options: SyncOptions) -> None:
        self._most = options.max_batch_bytes
        self._slow = options.request_timeout / 3
        self.most = min(FIRST_BYTES, self._most)
        """What the next request may have."""

    def answered(self, size: int, seconds: float) -> None:
        """A request of this size was taken after so long."""
        if seconds > self._slow:
            self._shrink(size)
        elif seconds < QUICK:
            self.most = min(max(self.most, 2 * size), self._most)

    def failed(self, size: int, error: RemoteError) -> None:
        """A request of this size was not taken."""
        if error.verdict is Verdict.UNREACHABLE:
            self._shrink(size)
        elif error.verdict is Verdict.REFUSED and error.status == TOO_LARGE and size > LEAST_BYTES:
            # Something on the way takes no more: it would be found out again with each growth.
            self._most = max(LEAST_BYTES, size // 2)
            self.most = min(self.most, self._most)

    def _shrink(self, size: int) -> None:
        if 2 * size > self.most:  # what became of a small one says nothing of large ones
            self.most = min(self.most, max(LEAST_BYTES, size // 2))
