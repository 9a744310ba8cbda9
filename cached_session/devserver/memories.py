"""The memories of one agent: records by id, their order, and a log of recent changes.

This module does not depend on HTTP, policies or the clock. The access counters, the expiry and the
decayed importance of a record change in place. Every other change replaces the record, so the
change log can keep old versions by reference.
"""

from __future__ import annotations

import zlib
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

CHANGES_KEPT = 200_000
"""Maximum number of changes in the change log of an agent. From the log, the server can return an
earlier state, as a replica that lags would. A change takes little memory: it only refers to
records."""


@dataclass(slots=True)
class Record:
    """One memory: the JSON object that clients get (`doc`), and internal fields."""

    doc: dict[str, Any]
    base_importance: float
    """Importance before decay."""
    expires: float | None = None
    """Unix time at which the memory is deleted; None for never."""
    explicit_expiry: bool = False
    """True if the client set the expiry; a recall does not extend such an expiry."""
    parent: str | None = None
    """Id of the memory from which this sentence was derived; None for an ordinary memory."""

    @property
    def id(self) -> str:
        """Return the id, which is unique within the agent."""
        return str(self.doc["id"])

    @property
    def created_at(self) -> int:
        """Return the time of creation in whole Unix seconds."""
        return int(self.doc["created_at"])

    def to_json(self) -> dict[str, Any]:
        """Return the record as a JSON object for the storage."""
        return {
            "doc": self.doc,
            "base_importance": self.base_importance,
            "expires": self.expires,
            "explicit_expiry": self.explicit_expiry,
            "parent": self.parent,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Record:
        """Return the record of a JSON object that `to_json` returned."""
        return cls(**value)


class AgentMemories:
    """The records of one agent by creation time; a seed orders the records of the same second."""

    def __init__(self, seed: int = 0) -> None:
        self.records: dict[str, Record] = {}
        self._seed = seed
        # Ascending: the newest record is last, so that appending and reading the newest are cheap.
        self._order: list[tuple[int, int, str]] = []
        self._children = 0
        self._changes: deque[tuple[float, str, Record | None]] = deque(maxlen=CHANGES_KEPT)

    def __len__(self) -> int:
        return len(self.records)

    def _sort_key(self, record: Record) -> tuple[int, int, str]:
        return (record.created_at, self.shuffle_key(record.id), record.id)

    def shuffle_key(self, memory_id: str) -> int:
        """Return a sort key that orders ids arbitrarily, but equally for equal seeds."""
        return zlib.crc32(f"{self._seed}:{memory_id}".encode())

    def put(self, record: Record, now: float) -> None:
        """Insert the record, or replace the record that has the same id."""
        old = self.records.get(record.id)
        self._changes.append((now, record.id, old))
        if old is not None:
            self._unlink(old)
        self._link(record)

    def remove(self, memory_id: str, now: float) -> Record | None:
        """Delete and return a record; None if it does not exist."""
        old = self.records.get(memory_id)
        if old is not None:
            self._changes.append((now, memory_id, old))
            self._unlink(old)
        return old

    def _link(self, record: Record) -> None:
        self.records[record.id] = record
        insort(self._order, self._sort_key(record))
        self._children += record.parent is not None

    def _unlink(self, record: Record) -> None:
        del self.records[record.id]
        del self._order[bisect_left(self._order, self._sort_key(record))]
        self._children -= record.parent is not None

    def newest(self, *, with_children: bool) -> Iterator[Record]:
        """Yield records newest first, with or without derived sentences."""
        for _, _, memory_id in reversed(self._order):
            record = self.records[memory_id]
            if with_children or record.parent is None:
                yield record

    def page(self, offset: int, limit: int, *, with_children: bool) -> list[Record]:
        """Return one page of `newest`; earlier pages are read only to skip derived records."""
        if with_children or not self._children:
            end = max(0, len(self._order) - offset)
            rows = self._order[max(0, end - limit) : end]
            return [self.records[memory_id] for _, _, memory_id in reversed(rows)]
        page: list[Record] = []
        for index, record in enumerate(self.newest(with_children=False)):
            if index >= offset + limit:
                break
            if index >= offset:
                page.append(record)
        return page

    def count(self, *, with_children: bool) -> int:
        """Return the number of records, with or without derived sentences."""
        return len(self.records) - (0 if with_children else self._children)

    def as_of(self, moment: float) -> AgentMemories:
        """Return a copy of the memories as they were at `moment`, a Unix time.

        A replica that lags would return these memories. The change log limits how old they can be.
        """
        past = dict(self.records)
        for when, memory_id, before in reversed(self._changes):
            if when <= moment:
                break
            if before is None:
                past.pop(memory_id, None)
            else:
                past[memory_id] = before
        view = AgentMemories(self._seed)
        view.records = past
        view._order = sorted(view._sort_key(record) for record in past.values())
        view._children = sum(record.parent is not None for record in past.values())
        return view
