"""Decide whether to trust the event stream to report what other devices write. Pure.

A stream can be open and still report nothing, or only a part: the nodes of a server may not share
their events, and a proxy may buffer them. A poll finds an operation that no event has named. Then
sessions are polled as if there were no stream, until events have been the first to name operations.
"""

from __future__ import annotations

__all__ = ["GRACE_SECONDS", "MOST_PROOFS", "StreamTrust"]

GRACE_SECONDS = 2.0
"""The time in seconds by which an event may be later than a poll that found its operation."""
MOST_PROOFS = 16
"""The largest number of events that must bring an operation before a doubted stream is trusted."""


class StreamTrust:
    """The trust in the event stream of one server. Times are in monotonic seconds."""

    def __init__(self) -> None:
        self._found: dict[str, float] = {}
        """The time of the earliest poll that found an operation which no event has named yet, by
        session id."""
        self._missing = 0
        """The number of proofs that are missing before the stream is trusted again."""
        self._needed = 1
        """The number of proofs that the next miss requires."""

    def found_by_poll(self, session_id: str, now: float) -> None:
        """Record that a poll has found an operation that no event had named."""
        self._found.setdefault(session_id, now)

    def heard(self, session_id: str, now: float) -> None:
        """Record an event that names an operation of another device."""
        if now - self._found.get(session_id, now) <= GRACE_SECONDS:
            self._found.pop(session_id, None)

    def proved(self) -> None:
        """Record that an event was the first to name a new operation."""
        self._missing = max(0, self._missing - 1)

    def forget(self, session_id: str) -> None:
        """Remove the record of a session that is no longer open."""
        self._found.pop(session_id, None)

    def is_trusted(self, now: float) -> bool:
        """Return whether polls may be rare because of the stream."""
        late = [name for name, found in self._found.items() if now - found > GRACE_SECONDS]
        for name in late:
            del self._found[name]
        if late:
            self._missing = self._needed
            # A stream that reports only a part would gain and lose the trust again and again.
            self._needed = min(2 * self._needed, MOST_PROOFS)
        return not self._missing
