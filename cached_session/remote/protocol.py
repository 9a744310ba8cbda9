"""The requests that the replicator makes of a server, and how each may be repeated and may fail.

A method is one attempt, bounded in time and without retries. It raises `RemoteError` when there is
no 2xx answer, and no other error of its own.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from cached_session.remote.wire import EncodedMemory

__all__ = ["EventSource", "GuardReport", "Remote"]


@dataclass(frozen=True)
class GuardReport:
    """The result of the retention guard for one namespace."""

    unguarded: str = ""
    """Empty if the policy protects the history; otherwise why it could not be set."""


@runtime_checkable
class EventSource(Protocol):
    """A server with an event stream. A `Remote` may lack it."""

    def events(self) -> AsyncGenerator[tuple[str, str] | None]:
        """Yield (agent, memory) for each memory that is stored from now on.

        None comes first, and whenever events may have been missed. Ends when the server closes the
        stream or has been silent for too long.
        """
        ...


class Remote(Protocol):
    """One server."""

    @property
    def server(self) -> str:
        """The base URL, which the journal's acknowledgements refer to."""
        ...

    @property
    def answered(self) -> int:
        """Number of requests with a 2xx answer so far.

        A step that leaves it unchanged has sent no request that succeeded.
        """
        ...

    async def store(self, agent: str, memories: Sequence[EncodedMemory]) -> set[str]:
        """Store memories under their own ids, and return the ids that the server reports stored.

        Safe to repeat. Without an answer any part of the memories may be stored.
        """
        ...

    async def fetch(self, agent: str, memory: str) -> dict[str, Any] | None:
        """Return one memory by its id; None if it is not there (or not yet)."""
        ...

    async def list_memories(self, agent: str, *, offset: int, limit: int) -> list[dict[str, Any]]:
        """Return a page of memories, newest first; empty for an agent that never stored.

        The list may shift between calls, lag behind, and hold memories of other programs.
        """
        ...

    async def forget(self, agent: str, memories: Sequence[str]) -> int:
        """Delete memories by id, and return how many the server deleted now.

        Safe to repeat, but the count of a repeat has no meaning.
        """
        ...

    async def find_by_tag(self, agent: str, tag: str) -> list[dict[str, Any]]:
        """Return up to 100 memories with this tag, in any order; the result may lag behind."""
        ...

    async def recall(self, agent: str, query: str, limit: int) -> list[dict[str, Any]]:
        """Return the memories that the server finds nearest in meaning, best first."""
        ...

    async def guard(self, agent: str) -> GuardReport:
        """Set a policy under which the server keeps the agent's memories. Safe to repeat."""
        ...

    async def aclose(self) -> None:
        """Close the connections that this object opened itself."""
        ...
