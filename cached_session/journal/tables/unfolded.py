"""Appends of this journal that are not yet counted in the rows of their session and writer.

An append that continues the run of its writer changes no row but its own, so that it writes few
pages. The session's row and the writer's row of `frontier` follow later: the next other write to
the session, or the next acknowledgement, folds the appends into these rows. Readers add them.
"""

from __future__ import annotations

import sqlite3
from typing import NamedTuple

__all__ = [
    "UNFOLDED_APPENDS",
    "UNFOLDED_ITEMS",
    "UNFOLDED_MOST",
    "Unfolded",
    "read_unfolded",
]

UNFOLDED_MOST = 64
"""Maximum number of appends of one writer that are not folded. A reader counts their rows."""

OF_WRITERS = (
    "FROM frontier f LEFT JOIN waiting w ON w.session = f.session AND w.writer = f.writer "
    "AND w.counter > f.upto WHERE f.behind = 1"
)
UNFOLDED_APPENDS = f"(SELECT count(w.seq) {OF_WRITERS} AND f.session = sessions.id)"
UNFOLDED_ITEMS = f"(SELECT coalesce(sum(w.count), 0) {OF_WRITERS} AND f.session = sessions.id)"
"""SQL for the number of unfolded appends, and of their items, of a row of the table `sessions`."""


class Unfolded(NamedTuple):
    """The unfolded appends of one writer in one session."""

    writer: str
    last: int
    """The counter of the last append."""
    appends: int
    items: int
    last_ms: int
    """The time of the last append, in Unix milliseconds."""


def read_unfolded(conn: sqlite3.Connection, session: int) -> list[Unfolded]:
    """Return the unfolded appends of each writer whose row may be behind."""
    rows = conn.execute(
        "SELECT u.writer, u.last, u.appends, u.items, coalesce(o.said_ms, 0) FROM ("
        "SELECT f.writer, coalesce(max(w.counter), 0) AS last, count(w.seq) AS appends, "
        f"coalesce(sum(w.count), 0) AS items, max(w.seq) AS seq {OF_WRITERS} AND f.session = ? "
        "GROUP BY f.writer) u LEFT JOIN ops o ON o.seq = u.seq",
        (session,),
    )
    return [Unfolded(*row) for row in rows.fetchall()]
