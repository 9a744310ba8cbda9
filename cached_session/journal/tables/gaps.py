"""The `holes` table: gaps, which are operations that are known to exist and are missing here."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from cached_session.history.ops import Dot
from cached_session.history.session_ref import SessionRef
from cached_session.journal.sqlite.runner import Runner
from cached_session.journal.tables.apply import SessionTransaction
from cached_session.journal.tables.states import BY_DOT

__all__ = [
    "GAPS_PER_WRITER",
    "Gap",
    "Gaps",
    "Search",
    "due_gaps",
    "record_searches",
    "refresh_gaps",
]

GAPS_PER_WRITER = 200
"""Maximum number of gaps of one writer that are listed at a time. A counter from a hostile memory
must not make the journal list a million operations that never existed."""
NO_LIMIT_MS = 1 << 62


@dataclass(frozen=True)
class Gap:
    """A missing operation, and its parts that the journal has."""

    dot: Dot
    tries: int
    """The number of searches for the operation so far."""
    have: frozenset[tuple[int, int]]
    """The stored parts, as (payload index, part index)."""
    part_counts: Mapping[int, int]
    """The number of parts of each payload with at least one stored part, by payload index."""
    popped: frozenset[int]
    """The indexes of items that need no search: they are popped, and the server may have deleted
    them."""
    count: int
    """The number of payloads of the operation; 0 if it is unknown."""


class Search(NamedTuple):
    """The outcome of one search for a gap."""

    dot: Dot
    next_ms: int
    """The time of the next search, in Unix milliseconds."""
    is_explained: bool
    """True if the server has a placeholder, because the writer has parked the operation."""


class Gaps:
    """The gaps of a journal's sessions, and the time of the next search for each gap."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    async def refresh(self, session: SessionRef, now_ms: int) -> int:
        """Update the list of gaps from the frontier; return the number of missing operations."""
        return await self._runner.write(refresh_gaps, session, now_ms)

    async def due(
        self, session: SessionRef, now_ms: int, limit: int, *, longest_ms: int, everything: bool
    ) -> list[Gap]:
        """Return the gaps to search for now, the most overdue gap first."""
        return await self._runner.read(
            due_gaps, session, now_ms, limit, longest_ms=longest_ms, everything=everything
        )

    async def record(self, session: SessionRef, searches: Sequence[Search]) -> None:
        """Store the outcome of searches."""
        await self._runner.write(record_searches, session, searches)


def refresh_gaps(conn: sqlite3.Connection, session: SessionRef, now_ms: int) -> int:
    """Update the list of gaps from the frontier; return the number of missing operations."""
    tx = SessionTransaction.begin(conn, session.name)
    if tx is None:
        return 0
    missing = tx.missing(GAPS_PER_WRITER) | _incomplete(tx)
    listed = set(
        conn.execute(
            "SELECT writer, counter FROM holes WHERE session = ?", (tx.session,)
        ).fetchall()
    )
    conn.executemany(
        "INSERT INTO holes VALUES (?, ?, ?, ?, 0, ?, 0)",
        [(tx.session, *dot, now_ms, now_ms) for dot in sorted(missing - listed)],
    )
    # An explained gap stays listed, because its writer may still send the operation. The row of the
    # gap is deleted when the frontier includes the operation: every item of the operation is
    # removed in this case, and no device will send the operation.
    conn.executemany(
        f"DELETE FROM holes WHERE {BY_DOT} AND (NOT explained OR ?)",
        [(tx.session, *dot, dot[1] in tx.writer(dot[0]).applied) for dot in listed - missing],
    )
    return len(missing)


def _incomplete(tx: SessionTransaction) -> set[tuple[str, int]]:
    """Return the operations with some parts stored; delete parts whose items are all removed."""
    found = set()
    stored = tx.conn.execute(
        "SELECT DISTINCT writer, counter FROM parts WHERE session = ?", (tx.session,)
    ).fetchall()
    for writer, counter in stored:
        if counter in tx.writer(writer).cleared or tx.wholly_popped(writer, counter):
            tx.conn.execute(f"DELETE FROM parts WHERE {BY_DOT}", (tx.session, writer, counter))
        else:
            found.add((writer, counter))
    return found


def due_gaps(
    conn: sqlite3.Connection,
    session: SessionRef,
    now_ms: int,
    limit: int,
    *,
    longest_ms: int = NO_LIMIT_MS,
    everything: bool = False,
) -> list[Gap]:
    """Return the gaps to search for now, the most overdue gap first.

    Args:
        longest_ms: the longest delay of a search, in milliseconds. A search that is planned for a
            later time was planned before the clock was changed, and is due.
        everything: also return gaps that are not due.
    """
    tx = SessionTransaction.begin(conn, session.name)
    if tx is None:
        return []
    rows = conn.execute(
        "SELECT writer, counter, tries FROM holes WHERE session = ? "
        "AND (next_ms NOT BETWEEN ? AND ? OR ?) ORDER BY next_ms LIMIT ?",
        (tx.session, now_ms + 1, now_ms + longest_ms, everything, limit),
    ).fetchall()
    return [_gap(tx, Dot(writer, counter), tries) for writer, counter, tries in rows]


def _gap(tx: SessionTransaction, dot: Dot, tries: int) -> Gap:
    stored = tx.conn.execute(
        f"SELECT idx, part, parts, count FROM parts WHERE {BY_DOT}", (tx.session, *dot)
    ).fetchall()
    return Gap(
        dot,
        tries,
        have=frozenset((index, part) for index, part, _, _ in stored),
        part_counts={index: parts for index, _, parts, _ in stored},
        popped=tx.popped(dot),
        count=stored[0][3] if stored else tx.popped_count(dot),
    )


def record_searches(
    conn: sqlite3.Connection, session: SessionRef, searches: Sequence[Search]
) -> None:
    """Store the outcome of searches. Skip a gap that a search has filled: its row is gone."""
    tx = SessionTransaction.begin(conn, session.name)
    if tx is None:
        return
    conn.executemany(
        f"UPDATE holes SET tries = tries + 1, next_ms = ?, explained = ? WHERE {BY_DOT}",
        [(search.next_ms, search.is_explained, tx.session, *search.dot) for search in searches],
    )
