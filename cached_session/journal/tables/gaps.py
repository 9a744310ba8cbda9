"""The holes table: gaps, which are operations known to exist that the journal does not have."""

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
"""Limit on the gaps of one writer that are listed at a time. A counter from a hostile memory must
not make the journal list a million operations that never existed."""
NO_LIMIT_MS = 1 << 62


@dataclass(frozen=True)
class Gap:
    """A missing operation, and the parts of it that are here."""

    dot: Dot
    tries: int
    """Searches so far."""
    have: frozenset[tuple[int, int]]
    """The parts that are here, as (payload, part)."""
    part_counts: Mapping[int, int]
    """The number of parts of each payload of which some part is here."""
    popped: frozenset[int]
    """The items that need no search: they are popped, and the server may have forgotten them."""
    count: int
    """The number of payloads of the operation; 0 if nothing is known about it."""


class Search(NamedTuple):
    """The outcome of one search for a gap."""

    dot: Dot
    next_ms: int
    """When to search again."""
    is_explained: bool
    """True if the server has a placeholder: the writer has parked the operation."""


class Gaps:
    """The gaps of each session, and when to search for each of them."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    async def refresh(self, session: SessionRef, now_ms: int) -> int:
        """Bring the list of gaps up to date with the frontier; return their number."""
        return await self._runner.write(refresh_gaps, session, now_ms)

    async def due(
        self, session: SessionRef, now_ms: int, limit: int, *, longest_ms: int, everything: bool
    ) -> list[Gap]:
        """Return the gaps to search for now, the longest overdue first."""
        return await self._runner.read(
            due_gaps, session, now_ms, limit, longest_ms=longest_ms, everything=everything
        )

    async def record(self, session: SessionRef, searches: Sequence[Search]) -> None:
        """Store the outcome of searches."""
        await self._runner.write(record_searches, session, searches)


def refresh_gaps(conn: sqlite3.Connection, session: SessionRef, now_ms: int) -> int:
    """Bring the list of gaps up to date with the frontier; return their number."""
    tx = SessionTransaction.begin(conn, session.session_id)
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
    # An explained gap stays listed, because its writer may still send the operation. It goes when
    # the frontier passes it: every item of the operation is removed, and no device will send it.
    conn.executemany(
        f"DELETE FROM holes WHERE {BY_DOT} AND (NOT explained OR ?)",
        [(tx.session, *dot, dot[1] in tx.writer(dot[0]).applied) for dot in listed - missing],
    )
    return len(missing)


def _incomplete(tx: SessionTransaction) -> set[tuple[str, int]]:
    """Return the operations of which only some parts are here; delete parts that nothing needs."""
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
    """Return the gaps to search for now, the longest overdue first.

    Args:
        longest_ms: a search that is planned further ahead was planned before the clock was
            changed, and is due.
        everything: return gaps that are not due, too.
    """
    tx = SessionTransaction.begin(conn, session.session_id)
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
    """Store the outcome of searches. A gap that a search has filled has no row any more."""
    tx = SessionTransaction.begin(conn, session.session_id)
    if tx is None:
        return
    conn.executemany(
        f"UPDATE holes SET tries = tries + 1, next_ms = ?, explained = ? WHERE {BY_DOT}",
        [(search.next_ms, search.is_explained, tx.session, *search.dot) for search in searches],
    )
