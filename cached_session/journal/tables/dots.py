"""Lookup of operations by their dots. Each operation is in the table `waiting` or in `acked`."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import NamedTuple

from cached_session.journal.tables.states import ACKED, BY_DOT, PLACE, Place

__all__ = ["FoundOperation", "find_operation", "find_state", "session_seqs"]

OF_DOT = (
    f"SELECT seq, state, error FROM waiting WHERE {BY_DOT} "
    f"UNION ALL SELECT seq, {ACKED}, NULL FROM acked WHERE {BY_DOT}"
)
OF_SEQ = f"SELECT {PLACE}, said_ms, count, resent, branch FROM ops WHERE seq = ?"


class FoundOperation(NamedTuple):
    """The columns of an operation that most callers need."""

    seq: int
    state: int
    error: str | None
    place: Place
    """The values of the columns `PLACE`."""
    said_ms: int
    payloads: int
    """The number of payloads, with removed ones."""
    is_resent: bool
    """True if the operation was sent again after a lost answer."""
    branch: str


def find_operation(
    conn: sqlite3.Connection, session: int, dot: tuple[str, int]
) -> FoundOperation | None:
    """Return an operation by its dot; None if the journal has no row of it."""
    known = find_state(conn, session, dot)
    if known is None:
        return None
    seq, state, error = known
    row = conn.execute(OF_SEQ, (seq,)).fetchone()
    if row is None:
        raise sqlite3.DatabaseError(f"malformed journal: operation number {seq} has no row")
    *place, said_ms, count, resent, branch = row
    return FoundOperation(seq, state, error, tuple(place), said_ms, count, bool(resent), branch)


def find_state(
    conn: sqlite3.Connection, session: int, dot: tuple[str, int]
) -> tuple[int, int, str | None] | None:
    """Return (`seq`, state, error) of an operation; None if the journal has no row of it."""
    key = (session, *dot)
    row: tuple[int, int, str | None] | None = conn.execute(OF_DOT, (*key, *key)).fetchone()
    return row


def session_seqs(conn: sqlite3.Connection, session: int) -> Iterator[int]:
    """Yield the `seq` numbers of all operations of a session, in ascending order."""
    rows = conn.execute(
        "SELECT seq FROM waiting WHERE session = ? UNION ALL "
        "SELECT seq FROM acked WHERE session = ? ORDER BY 1",
        (session, session),
    )
    return (seq for (seq,) in rows)
