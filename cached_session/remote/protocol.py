"""What the replicator asks of a server, in words: idempotency and failure of each request.

Every method raises `RemoteError` and nothing else of its own; a request is one attempt, without
retries of its own, and it is bounded in time.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from cached_session.remote.wire import EncodedMemory

__all__ = ["EventSource", "GuardReport", "Remote"]


@dataclass(frozen=True)
class GuardReport:
    """What the lifecycle guard could and could not do for a namespace."""

    unguarded: str = ""
    """Empty if the policy protects the history; otherwise why it could not be set."""


@runtime_checkable
class EventSource(Protocol):
    """A server that tells what is stored on it. Not every one does: a remote may lack it."""

    def events(self) -> AsyncGenerator[tuple[str, str] | None]:
        """(agent, memory) of each memory stored from now on; None first, and whenever anything may
        have been missed. Ends when the server closes the stream or has been silent for too long.
        """
        ...


class Remote(Protocol):
    """One server."""

    @property
    def server(self) -> str:
        """Its base URL: what acknowledgements refer to."""
        ...

    @property
    def answered(self) -> int:
        """How many requests have had a plain yes: tells a success from having asked nothing."""
        ...

    async def store(self, agent: str, memories: Sequence[EncodedMemory]) -> set[str]:
        """Store memories under their own ids; the ids that the server says it holds now.

        Safe to repeat. Without an answer any prefix, all or nothing may be stored.
        """
        ...

    async def fetch(self, agent: str, memory: str) -> dict[str, Any] | None:
        """One memory by its id; None if it is not there (or not there yet)."""
        ...

    async def list_memories(self, agent: str, *, offset: int, limit: int) -> list[dict[str, Any]]:
        """Memories newest first; empty for an agent that never stored. The list may shift
        between calls, lag behind, and hold what is not ours."""
        ...

    async def forget(self, agent: str, memories: Sequence[str]) -> int:
        """Delete memories by id; how many the server deleted now. Safe to repeat, but then the
        count says nothing."""
        ...

    async def find_by_tag(self, agent: str, tag: str) -> list[dict[str, Any]]:
        """Up to 100 memories that carry this tag, in any order; it may lag behind."""
        ...

    async def recall(self, agent: str, query: str, limit: int) -> list[dict[str, Any]]:
        """Memories that the server finds nearest in meaning, best first."""
        ...

    async def guard(self, agent: str) -> GuardReport:
        """Make the agent's namespace keep what it is given. Safe to repeat."""
        ...

    async def aclose(self) -> None:
        """Let go of connections that this object opened itself."""
        ...
