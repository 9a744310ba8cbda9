"""Counts for `status()`, read from the tables of the journal."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from cached_session.journal.sqlite.runner import Runner
from cached_session.journal.tables.meta import read_meta
from cached_session.journal.tables.pauses import SERVER, Pause, pause_of
from cached_session.journal.tables.sessions import numbered_sessions, session_row
from cached_session.journal.tables.states import PARKED
from cached_session.journal.tables.unfolded import UNFOLDED_ITEMS

__all__ = [
    "SessionCounts",
    "StatusCounts",
    "StatusRows",
    "all_pauses",
    "counts_of",
    "status_rows",
    "totals",
]


@dataclass(frozen=True)
class SessionCounts:
    """The counts of one session, or of all sessions together."""

    items: int
    pending: int
    parked: int
    absent: int
    """The number of gaps without a placeholder that are older than the patience."""
    explained: int
    """The number of gaps that have a placeholder, because their writers have parked them."""
    incomplete: int
    """The number of operations of which only some parts have arrived."""
    oldest_pending_ms: int | None
    """The time of the oldest operation that is pending or sent, in Unix milliseconds; None if no
    operation is."""
    conflicts: int
    unreadable: int
    """The number of memories that the last pull could not read."""
    guard: str
    """The reason why the last retention guard failed; empty if it succeeded."""
    hydrated: bool
    """True if at least one pull has reached the oldest memory."""
    pulled_ms: int
    """The time of the last successful pull, in Unix milliseconds; 0 if there was no pull."""
    stamp: int
    """The largest stamp of the applied operations."""


@dataclass(frozen=True)
class StatusRows:
    """The facts, pauses and counts from which a status is built."""

    meta: dict[str, str]
    server: Pause | None
    """The pause of the server."""
    sessions: dict[str, SessionCounts]
    """The counts of each session by its id, in the order in which the sessions were created."""
    pauses: dict[str, Pause]
    """The pauses of sessions, by session id."""


def status_rows(
    conn: sqlite3.Connection, session_id: str | None, now_ms: int, patience_ms: int
) -> StatusRows:
    """Return the rows for the status of a session, or of all sessions (None)."""
    meta, server = read_meta(conn), pause_of(conn, None)
    if session_id is not None:
        row = session_row(conn, session_id)
        counts = counts_of(conn, row[0] if row else -1, now_ms, patience_ms)
        pause = pause_of(conn, session_id)
        pauses = {} if pause is None else {session_id: pause}
        return StatusRows(meta, server, {session_id: counts}, pauses)
    each = _counts_of_each(conn, None, now_ms, patience_ms)
    names = numbered_sessions(conn)
    return StatusRows(
        meta,
        server,
        {name: each[number] for number, name in names.items()},
        {names[number]: pause for number, pause in all_pauses(conn).items() if number in names},
    )


def counts_of(
    conn: sqlite3.Connection, session: int | None, now_ms: int, patience_ms: int
) -> SessionCounts:
    """Return the counts of one session, or of all sessions together (None).

    ``patience_ms`` is the age in milliseconds from which a gap counts as absent. The cost grows
    with the outbox and the gaps, not with the items.
    """
    return totals(_counts_of_each(conn, session, now_ms, patience_ms).values())


def _counts_of_each(
    conn: sqlite3.Connection, session: int | None, now_ms: int, patience_ms: int
) -> dict[int, SessionCounts]:
    """Return the counts of one session, or of each session (None), by session number. The number of
    queries is independent of the number of sessions."""
    of, key = ("session = ? AND", (session,)) if session is not None else ("", ())

    def grouped(columns: str, rows: str, *before: int) -> dict[int, tuple[Any, ...]]:
        sql = f"SELECT session, {columns} FROM {rows} GROUP BY session"
        return {number: tuple(found) for number, *found in conn.execute(sql, (*before, *key))}

    waiting = grouped(
        "pending, said_ms",
        "(SELECT w.session, w.pending, o.said_ms FROM (SELECT session, count(*) AS pending, "
        f"min(seq) AS first FROM waiting WHERE {of} state <> {PARKED} GROUP BY session) w "
        "CROSS JOIN ops o ON o.seq = w.first)",
    )
    parked = grouped("count(*)", f"waiting WHERE {of} state = {PARKED}")
    gaps = grouped(
        "sum(since_ms <= ? AND NOT explained), sum(explained)",
        f"holes WHERE {of} 1",
        now_ms - patience_ms,
    )
    incomplete = grouped(
        "count(*)", f"(SELECT DISTINCT session, writer, counter FROM parts WHERE {of} 1)"
    )
    of = "WHERE id = ?" if session is not None else ""
    rows = conn.execute(
        f"SELECT id, items + {UNFOLDED_ITEMS}, conflicts, unreadable, guard, hydrated, "
        f"pulled_ms, stamp FROM sessions {of} ORDER BY id",
        key,
    )
    found = {}
    for number, items, conflicts, unreadable, guard, hydrated, pulled_ms, stamp in rows:
        numbers = (items, conflicts, unreadable, hydrated, pulled_ms, stamp)
        if not isinstance(guard, str) or any(type(cell) is not int for cell in numbers):
            raise ValueError(f"the row of session number {number!r:.80} is not valid")
        pending, oldest = waiting.get(number, (0, None))
        absent, explained = gaps.get(number, (0, 0))
        found[number] = SessionCounts(
            items=items,
            pending=pending,
            parked=parked.get(number, (0,))[0],
            absent=absent,
            explained=explained,
            incomplete=incomplete.get(number, (0,))[0],
            oldest_pending_ms=oldest,
            conflicts=conflicts,
            unreadable=unreadable,
            guard=guard,
            hydrated=bool(hydrated),
            pulled_ms=pulled_ms,
            stamp=stamp,
        )
    return found


def totals(each: Iterable[SessionCounts]) -> SessionCounts:
    """Return the combined counts of several sessions."""
    every = list(each)
    oldest = [one.oldest_pending_ms for one in every if one.oldest_pending_ms is not None]
    return SessionCounts(
        items=sum(one.items for one in every),
        pending=sum(one.pending for one in every),
        parked=sum(one.parked for one in every),
        absent=sum(one.absent for one in every),
        explained=sum(one.explained for one in every),
        incomplete=sum(one.incomplete for one in every),
        oldest_pending_ms=min(oldest, default=None),
        conflicts=sum(one.conflicts for one in every),
        unreadable=sum(one.unreadable for one in every),
        guard=max((one.guard for one in every), default=""),
        hydrated=bool(every) and all(one.hydrated for one in every),
        pulled_ms=max((one.pulled_ms for one in every), default=0),
        stamp=max((one.stamp for one in every), default=0),
    )


def all_pauses(conn: sqlite3.Connection) -> dict[int, Pause]:
    """Return the pauses of sessions, by session number."""
    return {
        number: Pause(*row)
        for number, *row in conn.execute(
            "SELECT session, failures, pause_ms, until_ms, kind, reason, since_ms FROM gates "
            f"WHERE session <> {SERVER}"
        )
    }


class StatusCounts:
    """The counts of a journal. The methods need no event loop, because `status()` is not a
    coroutine."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def read_blocking(self, session_id: str | None, now_ms: int, patience_ms: int) -> StatusRows:
        """Return the rows for the status of a session, or of all sessions (None).

        ``patience_ms`` is the age in milliseconds from which a gap counts as absent.
        """
        return self._runner.read_blocking(status_rows, session_id, now_ms, patience_ms)

    def totals_blocking(self, now_ms: int, patience_ms: int) -> SessionCounts:
        """Return the counts of all sessions together."""
        return self._runner.read_blocking(counts_of, None, now_ms, patience_ms)
