"""The names of a session: name, key prefix, id, hash, and the agent that stores the session."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from cached_session.history.ids import agent_id, session_key
from cached_session.history.session_name import split_name

__all__ = ["SessionRef"]


@dataclass(frozen=True, slots=True)
class SessionRef:
    """The names of one session, computed once."""

    name: str
    """Name made of key prefix and id, which identifies the session in the journal."""
    prefix: str
    """Key prefix; empty if the session has none."""
    session_id: str
    """The id that the user knows. It is unique for its prefix only."""
    key: str
    """Hash that replaces the name wherever the name itself is not legal."""
    agent: str
    """Id of the Dakera agent that stores the session."""

    @classmethod
    def of(cls, name: str) -> SessionRef:
        """Return the reference of the session with this name."""
        return _ref(name)


@lru_cache(maxsize=4096)
def _ref(name: str) -> SessionRef:
    return SessionRef(name, *split_name(name), session_key(name), agent_id(name))
