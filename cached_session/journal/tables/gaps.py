"""The holes table: operations that are known to exist and are missing here."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cached_session.history.ops import Dot
from cached_session.journal.tables.apply import SessionTransaction

__all__ = ["HOLES_A_WRITER", "Hole", "holes_due", "note_hole_tries", "note_holes"]

HOLES_A_WRITER = 200
"""Holes of one writer that are looked for at a time: a counter out of a hostile memory must not
make the journal list a million operations that never were."""


@dataclass(frozen=True)
class Hole:
    """An operation known to exist that is not here; with the parts of it that are."""

    dot: Dot
    tries: int
    have: frozenset[tuple[int, int]]
    """Parts of it that are here, as (payload, part)."""
    heads: Mapping[int, int]
    """Of the payloads of which some part is here, how many parts there are."""
    popped: frozenset[int]
    """Items of it that need not be looked for: they are popped, and may be forgotten."""
    count: int
    """Payloads of it; 0 while nothing is known."""


def note_holes(conn: sqlite3.Connection, session_id: str, now_ms: int) -> int:
    """Bring the list of holes up to date with the frontier; how many there are."""
    tx = SessionTransaction.begin(conn, session_id)
    if tx is None:
        return 0
    missing = tx.missing(HOLES_A_WRITER)
    incomplete = conn.execute(
        "SELECT DISTINCT writer, counter FROM parts WHERE session = ?", (tx.session,)
    ).fetchall()
    for writer, counter in incomplete:
        if counter in tx.writer(writer).cleared or tx.wholly_popped(writer, counter):
            conn.execute(
                "DELETE FROM parts WHERE session = ? AND writer = ? AND counter = ?",
                (tx.session, writer, counter),
            )
        else:
            missing.add((writer, counter))
    noted = set(
        conn.execute(
            "SELECT writer, counter FROM holes WHERE session = ?", (tx.session,)
        ).fetchall()
    )
    conn.executemany(
        "INSERT INTO holes VALUES (?, ?, ?, ?, 0, ?, 0)",
        [(tx.session, *dot, now_ms, now_ms) for dot in sorted(missing - noted)],
    )
    # What is explained stays: its writer may send it yet. Unless nobody will: all of it is removed.
    conn.executemany(
        "DELETE FROM holes WHERE session = ? AND writer = ? AND counter = ? "
        "AND (NOT explained OR ?)",
        [(tx.session, *dot, dot[1] in tx.writer(dot[0]).applied) for dot in noted - missing],
    )
    return len(missing)


def holes_due(
    conn: sqlite3.Connection,
    session_id: str,
    now_ms: int,
    most: int,
    *,
    longest_ms: int = 1 << 62,
    everything: bool = False,
) -> list[Hole]:
    """Holes that should be looked for now, with the parts that are here already. A look further
    away than ``longest_ms`` was planned by a clock that has been moved since, and is due."""
    tx = SessionTransaction.begin(conn, session_id)
    if tx is None:
        return []
    rows = conn.execute(
        "SELECT writer, counter, tries FROM holes WHERE session = ? "
        "AND (next_ms NOT BETWEEN ? AND ? OR ?) ORDER BY next_ms LIMIT ?",
        (tx.session, now_ms + 1, now_ms + longest_ms, everything, most),
    ).fetchall()
    holes = []
    for writer, counter, tries in rows:
        dot = Dot(writer, counter)
        places = conn.execute(
            "SELECT idx, part, parts, count FROM parts "
            "WHERE session = ? AND writer = ? AND counter = ?",
            (tx.session, writer, counter),
        ).fetchall()
        have = frozenset((index, part) for index, part, _, _ in places)
        heads = {index: parts for index, _, parts, _ in places}
        count = places[0][3] if places else tx.popped_count(dot)
        holes.append(Hole(dot, tries, have, heads, tx.popped(dot), count))
    return holes


def note_hole_tries(
    conn: sqlite3.Connection, session_id: str, tried: Sequence[tuple[Dot, int, bool]]
) -> None:
    """After a look that found nothing: (dot, when to look again, whether it is explained)."""
    tx = SessionTransaction.begin(conn, session_id)
    if tx is None:
        return
    conn.executemany(
        "UPDATE holes SET tries = tries + 1, next_ms = ?, explained = ? "
        "WHERE session = ? AND writer = ? AND counter = ?",
        [(next_ms, explained, tx.session, *dot) for dot, next_ms, explained in tried],
    )
