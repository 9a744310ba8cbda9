"""The state of pushes to one server: sent ids, progress of interrupted stores, request sizes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from itertools import islice

from cached_session.options import SyncOptions
from cached_session.remote.wire import EncodedMemory
from cached_session.replication.batch_size import BatchSize

__all__ = ["MAX_SENT_IDS", "PushState", "SentIds", "StoreProgress"]

MAX_SENT_IDS = 2000
"""The maximum number of ids that `SentIds` stores: the ids of two requests of the largest size. If
the event stream lags by more ids, the session is pulled once although the server has nothing
new."""


class SentIds:
    """The ids of the memories that this process has sent most recently.

    The event stream also reports these memories, and no pull is needed for them.
    """

    def __init__(self) -> None:
        self._ids: dict[str, None] = {}

    def __contains__(self, memory_id: str) -> bool:
        return memory_id in self._ids

    def add(self, memory_ids: Iterable[str]) -> None:
        """Add ids. Call this before sending them: an event may arrive before the answer."""
        self._ids.update(dict.fromkeys(memory_ids))
        for memory_id in list(islice(self._ids, max(0, len(self._ids) - MAX_SENT_IDS))):
            del self._ids[memory_id]


class StoreProgress:
    """The memories that the server has acknowledged in interrupted stores, by session.

    A server may limit the memories per minute. Under such a limit, a large operation needs several
    attempts, and sending its acknowledged memories again would use up the limit each time. So each
    attempt sends only the rest. At the end, the caller fetches the last acknowledged memory
    (`to_verify`), because the server may have restarted in the meantime and have lost the memories.
    """

    def __init__(self) -> None:
        self._acknowledged: dict[str, set[str]] = {}
        self._distrusted: set[str] = set()

    def unsent(self, session_id: str, memories: Sequence[EncodedMemory]) -> list[EncodedMemory]:
        """Return the memories of the list that the server has not acknowledged."""
        acknowledged = self._acknowledged.get(session_id, set())
        return [memory for memory in memories if memory.id not in acknowledged]

    def to_verify(self, session_id: str, memories: Sequence[EncodedMemory]) -> EncodedMemory | None:
        """Return a memory that an earlier store has sent, to verify that the server still holds it.

        Return None if no earlier store has sent any of the memories, or if an earlier verification
        has failed.
        """
        acknowledged = self._acknowledged.get(session_id, set())
        if session_id in self._distrusted:
            return None
        return next((memory for memory in reversed(memories) if memory.id in acknowledged), None)

    def acknowledge(self, session_id: str, memory_ids: Collection[str]) -> None:
        """Record memories that the server has acknowledged."""
        self._acknowledged.setdefault(session_id, set()).update(memory_ids)

    def lost(self, session_id: str) -> None:
        """Remove the acknowledgements of a session, because the server did not keep the memories.

        Until the store is finished, `to_verify` returns None for the session. Otherwise a server
        whose reads lag would fail each verification, and the operation would be sent without end.
        """
        self._distrusted.add(session_id)
        self._acknowledged.pop(session_id, None)

    def finish(self, session_id: str) -> None:
        """Remove the state of a session after all its memories were sent."""
        self._distrusted.discard(session_id)
        self._acknowledged.pop(session_id, None)

    def clear(self) -> None:
        """Remove the acknowledgements of all sessions."""
        self._acknowledged.clear()


class PushState:
    """The state of all pushes to one server. The state is not stored in the journal."""

    def __init__(self, options: SyncOptions) -> None:
        self.sent = SentIds()
        self.progress = StoreProgress()
        self.batch_size = BatchSize(options)
