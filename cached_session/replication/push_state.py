"""The state of pushes to one server: ids sent, progress of broken-off stores, request sizes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from itertools import islice

from cached_session.options import SyncOptions
from cached_session.remote.wire import EncodedMemory
from cached_session.replication.batch_size import BatchSize

__all__ = ["MAX_SENT_IDS", "PushState", "SentIds", "StoreProgress"]

MAX_SENT_IDS = 2000
"""Most ids that `SentIds` remembers: as many as two requests of the largest size send. If the event
stream lags by more than that, the session is pulled once although nothing is new."""


class SentIds:
    """The ids of memories that were sent lately: the event stream reports them, and they are not
    news here."""

    def __init__(self) -> None:
        self._ids: dict[str, None] = {}

    def __contains__(self, memory_id: str) -> bool:
        return memory_id in self._ids

    def add(self, memory_ids: Iterable[str]) -> None:
        """Remember ids that are about to be sent: an event may arrive before the answer does."""
        self._ids.update(dict.fromkeys(memory_ids))
        for memory_id in list(islice(self._ids, max(0, len(self._ids) - MAX_SENT_IDS))):
            del self._ids[memory_id]


class StoreProgress:
    """The memories that the server has acknowledged in stores that were broken off, by session.

    Where a server takes only so many memories a minute, those of a large operation are not sent
    again after the pause: they would use up the next minute, and the next. At the end the server is
    asked for the last one of them, because it may have been restarted meanwhile and have lost them.
    """

    def __init__(self) -> None:
        self._acknowledged: dict[str, set[str]] = {}
        self._distrusted: set[str] = set()

    def unsent(self, session_id: str, memories: Sequence[EncodedMemory]) -> list[EncodedMemory]:
        """Return those of the memories that the server has not acknowledged."""
        acknowledged = self._acknowledged.get(session_id, set())
        return [memory for memory in memories if memory.id not in acknowledged]

    def to_verify(self, session_id: str, memories: Sequence[EncodedMemory]) -> EncodedMemory | None:
        """Return the memory that shows whether the server still holds what an earlier store has
        sent; None if there is none, or if it has failed that test already."""
        acknowledged = self._acknowledged.get(session_id, set())
        if session_id in self._distrusted:
            return None
        return next((memory for memory in reversed(memories) if memory.id in acknowledged), None)

    def acknowledge(self, session_id: str, memory_ids: Collection[str]) -> None:
        """Remember memories that the server has acknowledged."""
        self._acknowledged.setdefault(session_id, set()).update(memory_ids)

    def lost(self, session_id: str) -> None:
        """Forget the acknowledgements of a session, because the server did not keep the memories.

        Later acknowledgements of the session are not tested: if the reads of a server lag, the test
        would fail again and again, and the operation would be sent without end.
        """
        self._distrusted.add(session_id)
        self._acknowledged.pop(session_id, None)

    def finish(self, session_id: str) -> None:
        """Forget a session whose memories have all been stored."""
        self._distrusted.discard(session_id)
        self._acknowledged.pop(session_id, None)

    def clear(self) -> None:
        """Forget all acknowledgements."""
        self._acknowledged.clear()


class PushState:
    """The state of all pushes to one server. It lasts as long as the connection."""

    def __init__(self, options: SyncOptions) -> None:
        self.sent = SentIds()
        self.progress = StoreProgress()
        self.batch_size = BatchSize(options)
