"""The names of a session: its id, the hash of the id, and the agent that stores the session."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from cached_session.history.ids import agent_id, session_key

__all__ = ["SessionRef"]


@dataclass(frozen=True, slots=True)
class SessionRef:
    """The names of one session, computed once."""

    session_id: str
    key: str
    """Hash that replaces the id wherever the id itself is not a legal name."""
    agent: str
    """Id of the Dakera agent that stores the session."""

    @classmethod
    def of(cls, session_id: str) -> SessionRef:
        """Return the reference of the session with this id."""
        return _ref(session_id)


@lru_cache(maxsize=4096)
def _ref(session_id: str) -> SessionRef:
    return SessionRef(session_id, session_key(session_id), agent_id(session_id))
