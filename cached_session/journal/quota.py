"""How much unsent work a journal may hold: asked inside each append's own transaction."""

from __future__ import annotations

import sqlite3

from cached_session.journal.sqlite.tracked_connection import TrackedConnection
from cached_session.journal.tables.states import PARKED

__all__ = ["Quota"]

UNSENT = (
    "SELECT coalesce(sum(live), 0), coalesce(sum(CASE live WHEN 0 THEN 0 ELSE bytes END), 0) "
    f"FROM ops WHERE state <> 2 AND state <> {PARKED} AND kind = 'append'"
)
"""What was removed again before it left never leaves, and what is parked holds nothing up."""


class Quota:
    """The limits of one journal's outbox, and a bound on what is in it.

    Exact whoever else writes to the file, and no scan a write: the outbox is counted again only
    where the bound says that it may be full, and something has been committed since the last count;
    and where something was queued that did not ask here, by an import for one.
    """

    def __init__(self, most_items: int | None, most_bytes: int | None) -> None:
        self._most_items = most_items
        self._most_bytes = most_bytes
        self._items = self._bytes = 0
        self._elsewhere: int | None = None
        self._queued = 0
        self._counted: tuple[int, int] | None = None

    @property
    def is_limited(self) -> bool:
        """Whether there is any limit at all."""
        return self._most_items is not None or self._most_bytes is not None

    def could_ever_hold(self, items: int, size: int) -> bool:
        """Whether a batch would fit into an empty outbox."""
        return self._fits(items, size)

    def admits(self, conn: sqlite3.Connection, items: int, size: int) -> bool:
        """Whether a batch fits; if so it counts from now on. Inside the writing transaction.

        A transaction that is rolled back leaves the bound too high, which the next count mends.
        """
        (elsewhere,) = conn.execute("PRAGMA data_version").fetchone()
        if elsewhere != self._elsewhere or _queued(conn) != self._queued:
            # Another process has written, or somebody who has no limit, or this is the first look.
            self._count(conn, elsewhere)
        elif not self._fits(self._items + items, self._bytes + size):
            # Acknowledgements make room, and they are changes of this very connection.
            if self._counted == (elsewhere, conn.total_changes):
                return False
            self._count(conn, elsewhere)
        if not self._fits(self._items + items, self._bytes + size):
            return False
        self._items += items
        self._bytes += size
        self._queued = _queued(conn) + 1
        return True

    def _fits(self, items: int, size: int) -> bool:
        return (self._most_items is None or items <= self._most_items) and (
            self._most_bytes is None or size <= self._most_bytes
        )

    def _count(self, conn: sqlite3.Connection, elsewhere: int) -> None:
        self._items, self._bytes = conn.execute(UNSENT).fetchone()
        self._elsewhere = elsewhere
        self._queued = _queued(conn)
        self._counted = (elsewhere, conn.total_changes)


def _queued(conn: sqlite3.Connection) -> int:
    return conn.queue_additions if isinstance(conn, TrackedConnection) else 0
