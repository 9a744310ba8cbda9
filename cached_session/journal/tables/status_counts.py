"""Counts for a status, read from the rows alone."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from cached_session.journal.tables.pauses import SERVER, Pause
from cached_session.journal.tables.states import PARKED, PENDING, SENT

__all__ = ["SessionFacts", "all_pauses", "facts", "facts_of_each", "in_all"]


@dataclass(frozen=True)
class SessionFacts:
    """The state of one session (or of all) as its rows tell it."""

    items: int
    pending: int
    parked: int
    absent: int
    explained: int
    incomplete: int
    oldest_pending_ms: int | None
    conflicts: int
    unreadable: int
    guard: str
    hydrated: bool
    pulled_ms: int
    stamp: int


def facts(
    conn: sqlite3.Connection, session: int | None, now_ms: int, patience_ms: int
) -> SessionFacts:
    """Counts for a status, of one session or of all together. Cost: the outbox and the holes, never
    the history."""
    return in_all(facts_of_each(conn, session, now_ms, patience_ms).values())


def facts_of_each(
    conn: sqlite3.Connection, session: int | None, now_ms: int, patience_ms: int
) -> dict[int, SessionFacts]:
    """The same session by session, in the order of their numbers: of one, or (None) of all. As many
    queries for a thousand as for one."""
    of, key = ("session = ? AND", (session,)) if session is not None else ("", ())

    def grouped(what: str, rows: str, *before: int) -> dict[int, tuple[Any, ...]]:
        sql = f"SELECT session, {what} FROM {rows} GROUP BY session"
        return {number: tuple(found) for number, *found in conn.execute(sql, (*before, *key))}

    waiting = grouped(
        "count(*), min(said_ms)",
        f"ops WHERE {of} state <> 2 AND state IN ({PENDING}, {SENT})",
    )
    parked = grouped("count(*)", f"ops WHERE {of} state <> 2 AND state = {PARKED}")
    holes = grouped(
        "sum(since_ms <= ? AND NOT explained), sum(explained)",
        f"holes WHERE {of} 1",
        now_ms - patience_ms,
    )
    incomplete = grouped(
        "count(*)", f"(SELECT DISTINCT session, writer, counter FROM parts WHERE {of} 1)"
    )
    of = "WHERE id = ?" if session is not None else ""
    rows = conn.execute(
        "SELECT id, items, conflicts, unreadable, guard, hydrated, pulled_ms, stamp "
        f"FROM sessions {of} ORDER BY id",
        key,
    )
    found = {}
    for number, items, conflicts, unreadable, guard, hydrated, pulled_ms, stamp in rows:
        pending, oldest = waiting.get(number, (0, None))
        absent, explained = holes.get(number, (0, 0))
        found[number] = SessionFacts(
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


def in_all(each: Iterable[SessionFacts]) -> SessionFacts:
    """Of several sessions together; of none, nothing."""
    every = list(each)
    oldest = [one.oldest_pending_ms for one in every if one.oldest_pending_ms is not None]
    return SessionFacts(
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
    """Every gate before a session, by its number."""
    return {
        number: Pause(*row)
        for number, *row in conn.execute(
            "SELECT session, failures, pause_ms, until_ms, kind, reason, since_ms FROM gates "
            f"WHERE session <> {SERVER}"
        )
    }
