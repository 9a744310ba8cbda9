"""The memories that events have named and that are not here yet, and when to fetch each. Pure."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

__all__ = ["DELAYS", "MOST_WAITING", "Announced"]

DELAYS = (0.2, 1.0, 5.0, 20.0, 60.0)
"""The times in seconds between the attempts to fetch a memory. The node of the server that answers
may not have the memory yet."""
MOST_WAITING = 500
"""The largest number of memories of a session that wait. Listings fetch the memories above it."""


@dataclass
class _Waiting:
    """The memories of one session that wait, each with the number of attempts so far."""

    due: float
    attempts: dict[str, int] = field(default_factory=dict)


class Announced:
    """The memories that events have named, by session. Times are in monotonic seconds."""

    def __init__(self) -> None:
        self._sessions: dict[str, _Waiting] = {}

    def add(self, session_id: str, memory: str, now: float) -> bool:
        """Add a memory that an event has named; return False if too many memories wait.

        The memory is due now, with the memories of the session that wait already.
        """
        waiting = self._sessions.setdefault(session_id, _Waiting(math.inf))
        if memory not in waiting.attempts and len(waiting.attempts) >= MOST_WAITING:
            return False
        waiting.attempts.setdefault(memory, 0)
        waiting.due = min(waiting.due, now)
        return True

    def due(self, now: float, *, besides: Collection[str]) -> tuple[list[str], float]:
        """Return the sessions with due memories, and the time when the next session is due.

        Args:
            besides: the sessions whose memories are being fetched. They are left out.
        """
        idle = {name: one.due for name, one in self._sessions.items() if name not in besides}
        nearest = min((due for due in idle.values() if due > now), default=math.inf)
        return [name for name, due in idle.items() if due <= now], nearest

    def take(self, session_id: str) -> list[str]:
        """Return the memories of a session that wait. None is due until `retry` or `add`."""
        waiting = self._sessions.get(session_id)
        if waiting is None:
            return []
        waiting.due = math.inf
        return list(waiting.attempts)

    def is_waiting(self, session_id: str) -> bool:
        """Return whether a memory of the session waits."""
        return session_id in self._sessions

    def arrived(self, session_id: str, memories: Iterable[str]) -> None:
        """Remove memories that are here, or that this device does not need."""
        waiting = self._sessions.get(session_id)
        if waiting is None:
            return
        for memory in memories:
            waiting.attempts.pop(memory, None)
        if not waiting.attempts:
            del self._sessions[session_id]

    def retry(self, session_id: str, memories: Iterable[str], now: float) -> list[str]:
        """Plan the next attempt for memories that an attempt has not brought.

        Returns:
            The memories that are not attempted any more. They no longer wait.
        """
        waiting = self._sessions.get(session_id)
        if waiting is None:
            return []
        attempts = {name: waiting.attempts[name] for name in memories if name in waiting.attempts}
        given_up = [name for name, count in attempts.items() if count >= len(DELAYS)]
        for name, count in attempts.items():
            if count < len(DELAYS):
                waiting.attempts[name] = count + 1
                waiting.due = min(waiting.due, now + DELAYS[count])
        self.arrived(session_id, given_up)
        return given_up

    def put_off(self, session_id: str, until: float) -> None:
        """Delay the memories of a session until a time, without counting an attempt."""
        waiting = self._sessions.get(session_id)
        if waiting is not None:
            waiting.due = until

    def forget(self, session_id: str) -> None:
        """Remove the memories of a session that is no longer open."""
        self._sessions.pop(session_id, None)
