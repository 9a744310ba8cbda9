"""The quota: the limit on unsent items and bytes. Each append checks the quota in its own
transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from cached_session.errors import JournalFull
from cached_session.humanize import count
from cached_session.journal.sqlite.tracked_connection import data_version, queued
from cached_session.journal.tables.states import PARKED

__all__ = ["Quota", "full_error", "size_of"]

UNSENT = (
    "SELECT coalesce(sum(live), 0), coalesce(sum(CASE live WHEN 0 THEN 0 ELSE bytes END), 0) "
    "FROM waiting w CROSS JOIN ops o ON o.seq = w.seq "
    f"WHERE w.state <> {PARKED} AND kind = 'append'"
)
"""SQL for the number of unsent items and their bytes. The query leaves out parked operations, and
items that were removed before they were sent, because such items are never sent."""


class Quota:
    """The limits of one journal's outbox, and an upper bound of its content.

    The bound is in memory, so that a write need not scan the outbox. The outbox is counted again
    when the bound is about to exceed a limit, or when another connection or an import has
    queued work.
    """

    def __init__(self, most_items: int | None, most_bytes: int | None) -> None:
        self.most_items = most_items
        self.most_bytes = most_bytes
        self.forget()

    def forget(self) -> None:
        """Make the next check count again, because another file has replaced the journal."""
        self._items = self._bytes = 0
        self._elsewhere: int | None = None
        self._queued = 0
        self._counted: tuple[int, int] | None = None

    @property
    def is_limited(self) -> bool:
        """True if items or bytes are limited."""
        return self.most_items is not None or self.most_bytes is not None

    def could_ever_hold(self, encoded: Sequence[tuple[str, int]]) -> bool:
        """Return whether a batch would fit into an empty outbox."""
        return self._fits(len(encoded), size_of(encoded))

    def admits(self, conn: sqlite3.Connection, encoded: Sequence[tuple[str, int]]) -> bool:
        """Return whether a batch fits; if so, add its size to the bound.

        Call this method inside the write transaction. If the transaction is rolled back, the bound
        is too high until the next count.
        """
        items, size = len(encoded), size_of(encoded)
        elsewhere = data_version(conn)
        if elsewhere != self._elsewhere or queued(conn) != self._queued:
            # Another process, or a write that has no limit, may have queued operations; or this is
            # the first check.
            self._count(conn, elsewhere)
        elif not self._fits(self._items + items, self._bytes + size):
            # Acknowledgements free quota, and this connection writes them. A new count would return
            # the old result if no connection has changed a row since the last count.
            if self._counted == (elsewhere, conn.total_changes):
                return False
            self._count(conn, elsewhere)
        if not self._fits(self._items + items, self._bytes + size):
            return False
        self._items += items
        self._bytes += size
        self._queued = queued(conn) + 1
        return True

    def _fits(self, items: int, size: int) -> bool:
        return (self.most_items is None or items <= self.most_items) and (
            self.most_bytes is None or size <= self.most_bytes
        )

    def _count(self, conn: sqlite3.Connection, elsewhere: int) -> None:
        self._items, self._bytes = conn.execute(UNSENT).fetchone()
        self._elsewhere = elsewhere
        self._queued = queued(conn)
        self._counted = (elsewhere, conn.total_changes)


def size_of(encoded: Sequence[tuple[str, int]]) -> int:
    """Return the size of a batch in bytes."""
    return sum([len(text.encode(errors="replace")) for text, _ in encoded])


def full_error(encoded: Sequence[tuple[str, int]], quota: Quota, why: str) -> JournalFull:
    """Return the error for a batch that the quota does not admit."""
    return JournalFull(
        f"a batch of {count(len(encoded), 'item')} ({size_of(encoded)} bytes) was not stored: "
        f"{why} (max_pending_items={quota.most_items}, max_pending_bytes={quota.most_bytes})"
    )
