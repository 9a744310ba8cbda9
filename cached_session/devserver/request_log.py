"""The request log: each request that arrived, and the status that was sent.

Tests read it to count requests and to see which faults applied to them.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

REQUESTS_KEPT = 100_000
"""Maximum number of requests in the log. It is bounded, because a demo may run for days."""


@dataclass(frozen=True)
class LoggedRequest:
    """One request that arrived, and its outcome."""

    method: str
    path: str
    query: str
    status: int | None
    """The status that was sent; None if the connection was dropped instead."""
    committed: bool
    """True if the route ran, even if the client received an error or no response."""
    faults: tuple[str, ...] = ()
    """The kinds of the faults that applied."""


class RequestLog:
    """The latest requests since the start or the last `clear`, in order of completion."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: deque[LoggedRequest] = deque(maxlen=REQUESTS_KEPT)

    def add(self, entry: LoggedRequest) -> None:
        """Append a finished request."""
        with self._lock:
            self._entries.append(entry)

    def all(self) -> list[LoggedRequest]:
        """Return a copy of the log."""
        with self._lock:
            return list(self._entries)

    def clear(self) -> None:
        """Remove all entries."""
        with self._lock:
            self._entries.clear()

    def count(self, route: str = "*", *, status: int | None = None) -> int:
        """Count requests by a pattern for `METHOD /path` and, if given, by status."""
        return sum(
            fnmatchcase(f"{entry.method} {entry.path}", route)
            and (status is None or entry.status == status)
            for entry in self.all()
        )

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[LoggedRequest]:
        return iter(self.all())
