"""The interface of a server: its requests, and whether each is safe to repeat.

A method makes one attempt, with a time limit and without retries. If there is no 2xx answer, the
method raises `RemoteError`. No method raises another error of its own.
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
    """Reason why the policy could not be set; empty if the policy protects the history."""


@runtime_checkable
class EventSource(Protocol):
    """A server with an event stream. A `Remote` need not implement this interface."""

    def events(self) -> AsyncGenerator[tuple[str, str] | None]:
        """Yield (agent, memory) for each memory that is stored from now on.

        Yield None first, and whenever events may have been missed. The iteration ends when the
        server closes the stream or has been silent for too long.
        """
        ...


class Remote(Protocol):
    """One server."""

    @property
    def server(self) -> str:
        """The base URL. The journal's acknowledgements refer to it."""
        ...

    @property
    def answered(self) -> int:
        """Number of requests with a 2xx answer so far.

        If the number is unchanged after a step, no request of that step succeeded.
        """
        ...

    @property
    def server_second(self) -> int:
        """The server's time in the last answer, in Unix seconds; 0 if it is unknown."""
        ...

    async def store(self, agent: str, memories: Sequence[EncodedMemory]) -> set[str]:
        """Store memories under their own ids, and return the ids that the server reports as stored.

        The call is safe to repeat. If no answer arrives, the server may have stored any of the
        memories.
        """
        ...

    async def fetch(self, agent: str, memory: str) -> dict[str, Any] | None:
        """Return one memory by its id; None if the server does not show a memory with this id.

        A server may show a new memory late.
        """
        ...

    async def list_memories(self, agent: str, *, offset: int, limit: int) -> list[dict[str, Any]]:
        """Return a page of memories, newest first; an empty list for an agent without memories.

        Positions may shift between calls. The list may miss recent changes, and may contain
        memories of other programs.
        """
        ...

    async def forget(self, agent: str, memories: Sequence[str]) -> int:
        """Delete memories by id, and return how many the server deleted in this call.

        The call is safe to repeat, but the count of a repeated call has no meaning.
        """
        ...

    async def find_by_tag(self, agent: str, tag: str) -> list[dict[str, Any]]:
        """Return up to 100 memories with this tag, in any order. Recent changes may be missing."""
        ...

    async def recall(self, agent: str, query: str, limit: int) -> list[dict[str, Any]]:
        """Return the memories that the server finds nearest in meaning, best first."""
        ...

    async def guard(self, agent: str) -> GuardReport:
        """Set a policy that stops the server from deleting the agent's memories.

        The call is safe to repeat.
        """
        ...

    async def aclose(self) -> None:
        """Close the connections that this object opened itself."""
        ...
