"""What `status()` says, from the rows of the journal alone."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, replace

from cached_session.history.clock import stamp_ms
from cached_session.journal.recovery.report import read_report
from cached_session.journal.tables import pauses, status_counts
from cached_session.journal.tables.meta import read_meta
from cached_session.journal.tables.sessions import numbered_sessions, session_row
from cached_session.journal.tables.status_counts import (
    SessionFacts,
    all_pauses,
    facts_of_each,
    in_all,
)
from cached_session.models import State, Status

__all__ = ["Viewpoint", "backlog_age", "closed", "report"]

STALLED_MS = 120_000
"""A queue that waits this long, with no pause that explains it and nothing acknowledged, stalls:
four times as long as one request may take."""
CLOCK_AHEAD_MS = 60_000
"""Devices' clocks differ by seconds; more than this is worth a word in the status."""


@dataclass(frozen=True)
class Viewpoint:
    """Who looks at a journal, and when."""

    journal: str
    server: str | None
    """As configured now; None for local-only use."""
    now: int
    """Unix milliseconds, as the other times."""
    opened: int
    hole_patience: int
    """Milliseconds before a hole counts as absent."""
    is_closed: bool
    trouble: Callable[[str | None], str | None] = lambda _: None
    """Why the journal keeps a session (None: any) from being synced, where no row can tell."""


def closed(journal: str, server: str | None) -> Status:
    """Of a journal that nobody may read any more."""
    return Status(
        state="closed",
        items=0,
        pending=0,
        parked=0,
        absent=0,
        oldest_pending_age=None,
        last_success=None,
        last_error=None,
        server=server,
        journal=journal,
    )


def backlog_age(oldest: int | None, now: int) -> float | None:
    """Seconds that the oldest operation has waited; never negative, whatever the clock did."""
    return None if oldest is None else max(0.0, (now - oldest) / 1000)


def report(conn: sqlite3.Connection, session_id: str | None, at: Viewpoint) -> Status:
    """One session, or all of the journal with each of its sessions."""
    meta, server = read_meta(conn), pauses.pause_of(conn, None)
    salvaged = read_report(meta)
    told = None if salvaged is None else salvaged.summary()
    if session_id is not None:
        row = session_row(conn, session_id)
        facts = status_counts.facts(conn, row[0] if row else -1, at.now, at.hole_patience)
        gate = pauses.pause_of(conn, session_id)
        return _status(session_id, facts, meta, told, [server, gate], at)
    each = facts_of_each(conn, None, at.now, at.hole_patience)
    shut = all_pauses(conn)
    sessions = {
        name: _status(name, each[number], meta, told, [server, shut.get(number)], at)
        for number, name in numbered_sessions(conn).items()
    }
    total = _status(None, in_all(each.values()), meta, told, [server, *shut.values()], at)
    return replace(total, sessions=sessions)


def _status(
    session_id: str | None,
    facts: SessionFacts,
    meta: dict[str, str],
    salvaged: str | None,
    gates_before: list[pauses.Pause | None],
    at: Viewpoint,
) -> Status:
    """``gates_before``: the server's first."""
    server = gates_before[0]
    shut = [gate for gate in gates_before if gate is not None]
    waits = [gate.wait_ms(at.now) for gate in shut]
    ahead = stamp_ms(facts.stamp) - at.now
    success = meta.get("last_success_ms")
    error = shut[-1].reason if shut else _hindrance(facts, meta, at, session_id)
    return Status(
        state=_state(server, shut, session_id, at, has_answered=bool(success)),
        items=facts.items,
        pending=facts.pending,
        parked=facts.parked,
        absent=facts.absent,
        oldest_pending_age=backlog_age(facts.oldest_pending_ms, at.now),
        last_success=int(success) / 1000 if success else None,
        last_error=error,
        server=at.server,
        journal=at.journal,
        retry_in=max(waits) / 1000 if waits else None,
        failing_for=max(0, at.now - min(gate.since_ms for gate in shut)) / 1000 if shut else None,
        is_refused=_is_refused(shut),
        incomplete=facts.incomplete,
        conflicts=facts.conflicts,
        clock_ahead=ahead / 1000 if ahead > CLOCK_AHEAD_MS else None,
        unreadable=facts.unreadable,
        unguarded=facts.guard or None,
        salvaged=salvaged,
        hydrated=facts.hydrated,
        last_server=meta.get("server"),
    )


def _state(
    server: pauses.Pause | None,
    shut: list[pauses.Pause],
    session_id: str | None,
    at: Viewpoint,
    *,
    has_answered: bool,
) -> State:
    if at.is_closed:
        return "closed"
    if at.server is None:
        return "local"
    if _is_refused(shut):
        return "unauthorized"
    if server is not None or (session_id is not None and shut):
        return "offline"
    return "online" if has_answered else "connecting"


def _is_refused(shut: list[pauses.Pause]) -> bool:
    return any(gate.kind == "unauthorized" for gate in shut)


def _hindrance(
    facts: SessionFacts, meta: dict[str, str], at: Viewpoint, session_id: str | None
) -> str | None:
    """Why what no gate holds up does not go on; None where it does, or has the time."""
    if at.server is None or at.is_closed:
        return None
    return at.trouble(session_id) or _stall(facts, meta, at)


def _stall(facts: SessionFacts, meta: dict[str, str], at: Viewpoint) -> str | None:
    oldest = facts.oldest_pending_ms
    if oldest is None:
        return None
    since = max(oldest, int(meta.get("last_ack_ms", 0)), at.opened)
    if at.now - since <= STALLED_MS:
        return None
    return (
        f"{facts.pending} operations wait and nothing was sent for "
        f"{(at.now - since) // 1000} s: is the process alive that syncs {at.journal} "
        "(the one that holds the lock beside it), and its event loop not held up?"
    )
