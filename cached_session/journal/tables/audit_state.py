"""Audit marks in the `meta` table, and the queries and writes of an audit.

The audit mark of a session is the time of its last audit in Unix milliseconds, or `SUSPECTED`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from cached_session.history.ids import session_key
from cached_session.history.ops import Dot, Kind
from cached_session.history.parts import part_count
from cached_session.history.session_ref import SessionRef
from cached_session.journal.sqlite.runner import Runner
from cached_session.journal.tables.apply import SessionTransaction
from cached_session.journal.tables.audit_plan import (
    AuditPlan,
    HeldOperation,
    ServerListing,
    compare,
)
from cached_session.journal.tables.dots import session_seqs
from cached_session.journal.tables.meta import write_meta
from cached_session.journal.tables.outbox import Forget
from cached_session.journal.tables.payloads import checked_payloads
from cached_session.journal.tables.sessions import session_ids
from cached_session.journal.tables.states import ACKED, PARKED

__all__ = [
    "AuditOverview",
    "Audits",
    "DueAudit",
    "audit_overview",
    "due_at",
    "first_mark",
    "next_due",
    "plan_audit",
    "queue_forgets",
    "record_audit",
    "suspect",
]

SUSPECTED = 0
"""The audit mark of a session of which the server seems to have lost memories."""


class DueAudit(NamedTuple):
    """The session to audit now, or the time to wait for the next audit."""

    session_id: str | None
    """The session to audit now; None if no audit is due."""
    wait_ms: int
    """Milliseconds until the next audit is due; 0 if one is due now."""


@dataclass(frozen=True)
class AuditOverview:
    """Times of the last audits of the sessions of a journal."""

    sessions: int
    """The number of sessions with at least one acknowledged operation."""
    suspected: int
    """The number of sessions of which the server seems to have lost memories since their last
    audit."""
    late: int
    """The number of sessions whose last audit is more than `longest_ms` ago (see
    `audit_overview`)."""
    oldest_ms: int
    """The oldest audit mark of the late sessions, in Unix milliseconds; 0 if no session is late."""


class Audits:
    """The audits of a journal's sessions: their marks and plans."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    async def plan(self, session: SessionRef, listing: ServerListing) -> AuditPlan:
        """Return the differences between the server's listing and the operations of a session."""
        return await self._runner.read_aside(plan_audit, session, listing)

    async def queue_forgets(self, session: SessionRef, forgets: Sequence[Forget]) -> None:
        """Queue these memories, so that the next push deletes them from the server."""
        await self._runner.write(queue_forgets, session, forgets)

    async def next_due(
        self,
        *,
        now_ms: int,
        interval_ms: int,
        writer: str,
        excluded: Collection[str],
        suspects_only: bool,
    ) -> DueAudit:
        """Return the session whose audit is due now, or the time until the next audit."""
        return await self._runner.write(
            next_due, now_ms, interval_ms, writer, excluded, suspects_only=suspects_only
        )

    async def overview(self, now_ms: int, longest_ms: int) -> AuditOverview:
        """Return an overview of the audit marks of all sessions."""
        return await self._runner.read(audit_overview, now_ms, longest_ms)

    async def record(self, session: SessionRef, now_ms: int) -> None:
        """Store the time of a successful audit of a session."""
        await self._runner.write(record_audit, session, now_ms)

    async def suspect(self, session: SessionRef, now_ms: int, grace_ms: int) -> None:
        """Make an audit of a session due, unless its last audit was less than ``grace_ms`` ago."""
        await self._runner.write(suspect, session, now_ms, grace_ms)


def plan_audit(conn: sqlite3.Connection, session: SessionRef, listing: ServerListing) -> AuditPlan:
    """Return the differences between the server's listing and the operations of a session."""
    tx = SessionTransaction.begin(conn, session.name)
    if tx is None:
        return AuditPlan()
    return compare(_held(tx), listing, lambda dot: dot.counter in tx.writer(dot.writer).cleared)


def _held(tx: SessionTransaction) -> Iterator[HeldOperation]:
    """Yield the operations of a session in the order of writing."""
    states: dict[int, int] = dict(
        tx.conn.execute("SELECT seq, state FROM waiting WHERE session = ?", (tx.session,))
    )
    for seq in session_seqs(tx.conn, tx.session):
        writer, counter, kind, body, count, live = tx.conn.execute(
            "SELECT writer, counter, kind, CAST(body AS BLOB), count, live FROM ops WHERE seq = ?",
            (seq,),
        ).fetchone()
        state, is_append = states.get(seq, ACKED), kind == Kind.APPEND.value
        part_counts: dict[int, int] = {}
        if state in (ACKED, PARKED):
            shown = checked_payloads(seq, body, count, live) if is_append else [(0, body)]
            part_counts = {
                index: part_count(text.decode(errors="replace")) for index, text in shown
            }
        dot = Dot(writer, counter)
        yield HeldOperation(seq, dot, state == ACKED, state == PARKED, is_append, part_counts)


def queue_forgets(conn: sqlite3.Connection, session: SessionRef, forgets: Sequence[Forget]) -> None:
    """Queue these memories, so that the next push deletes them from the server.

    The server has already acknowledged the removal of their items, so the push need not wait for an
    acknowledgement.
    """
    tx = SessionTransaction.begin(conn, session.name)
    if tx is not None:
        conn.executemany(
            "INSERT OR IGNORE INTO forgets VALUES (?, ?, ?, ?, ?, '', 0)",
            [(tx.session, *forget.dot, forget.index, forget.parts) for forget in forgets],
        )


def next_due(
    conn: sqlite3.Connection,
    now_ms: int,
    interval_ms: int,
    writer: str,
    excluded: Collection[str] = (),
    *,
    suspects_only: bool = False,
) -> DueAudit:
    """Return the session whose audit is the longest overdue, or the time until the next audit.

    The audit marks are stored, so that a restart neither repeats nor delays an audit. A session
    without a mark gets the mark that `first_mark` returns.

    Args:
        writer: the writer id of the open journal.
        excluded: ids of sessions to skip.
        suspects_only: return only a session that `suspect` has marked.
    """
    marks = _marks(conn)
    due: tuple[int, str] | None = None
    for name in _acknowledged(conn):
        if name in excluded:
            continue
        key = _mark(session_key(name))
        last = int(marks.get(key, now_ms + 1))
        if last > now_ms:  # no mark, or a mark in the future because the clock was changed
            last = first_mark(now_ms, interval_ms, writer, name)
            write_meta(conn, **{key: str(last)})
        if suspects_only and last != SUSPECTED:
            continue
        at = due_at(last, interval_ms, name)
        if due is None or at < due[0]:
            due = at, name
    if due is None:
        return DueAudit(None, interval_ms)
    return DueAudit(due[1], 0) if due[0] <= now_ms else DueAudit(None, due[0] - now_ms)


def first_mark(now_ms: int, interval_ms: int, writer: str, session_id: str) -> int:
    """Return a time within the last interval that depends on the writer id and the session.

    Such times spread the first audits, so that the sessions of all devices are not audited at once.
    """
    return now_ms - int(interval_ms * _fraction(writer, session_id))


def due_at(last_ms: int, interval_ms: int, session_id: str) -> int:
    """Return the time at which the next audit of a session is due, in Unix milliseconds.

    The interval of each session is up to a tenth shorter or longer, so that the audits of different
    sessions do not coincide.
    """
    return last_ms + int(interval_ms * (0.9 + 0.2 * _fraction("pace", session_id)))


def audit_overview(conn: sqlite3.Connection, now_ms: int, longest_ms: int) -> AuditOverview:
    """Return an overview of the audit marks of all sessions.

    Args:
        longest_ms: the age in milliseconds of a last audit above which a session is late.
    """
    names = _acknowledged(conn)
    marks = _marks(conn)
    keys = [_mark(session_key(name)) for name in names]
    known = [int(marks[key]) for key in keys if key in marks]
    late = [mark for mark in known if SUSPECTED < mark < now_ms - longest_ms]
    return AuditOverview(len(names), known.count(SUSPECTED), len(late), min(late, default=0))


def _acknowledged(conn: sqlite3.Connection) -> list[str]:
    """Return the ids of the sessions with at least one acknowledged operation."""
    return list(
        session_ids(
            conn.execute(
                "SELECT session_id FROM sessions s WHERE EXISTS "
                "(SELECT 1 FROM acked WHERE session = s.id)"
            ).fetchall()
        )
    )


def _marks(conn: sqlite3.Connection) -> dict[str, str]:
    """Return the times of the last audits in milliseconds, by the keys that `_mark` returns."""
    return dict(
        conn.execute("SELECT key, value FROM meta WHERE key >= 'audit:' AND key < 'audit;'")
    )


def record_audit(conn: sqlite3.Connection, session: SessionRef, now_ms: int) -> None:
    """Store the time of a successful audit of a session."""
    write_meta(conn, **{_mark(session.key): str(now_ms)})


def suspect(conn: sqlite3.Connection, session: SessionRef, now_ms: int, grace_ms: int) -> None:
    """Make an audit of a session due, unless its last audit was less than ``grace_ms`` ago."""
    key = _mark(session.key)
    row = conn.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    if row is None or not 0 <= now_ms - int(row[0]) < grace_ms:
        write_meta(conn, **{key: str(SUSPECTED)})


def _mark(key: str) -> str:
    """Return the meta key that holds the time of a session's last audit."""
    return f"audit:{key}"


def _fraction(*words: str) -> float:
    """Return a pseudorandom number from 0 to 1 that depends only on the words."""
    return int(session_key("/".join(words))[:8], 16) / 0x1_0000_0000
