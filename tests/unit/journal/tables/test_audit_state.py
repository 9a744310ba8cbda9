"""When sessions are audited, and what the journal holds for an audit."""

from __future__ import annotations

import sqlite3

import pytest

from cached_session.history.ops import Dot
from cached_session.history.session_ref import SessionRef
from cached_session.journal.tables import audit_state
from cached_session.journal.tables.audit_plan import AuditPlan, ServerListing
from cached_session.journal.tables.audit_state import AuditOverview, DueAudit
from cached_session.journal.tables.outbox import Forget
from cached_session.journal.tables.states import ACKED, PARKED
from tests.journal_rows import set_states
from tests.unit.journal.tables.arrivals import ME, SESSION, add, pop

DAY_MS = 86_400_000
NOW_MS = 1_700_000_000_000
UNKNOWN = SessionRef.of("unknown")


@pytest.fixture
def acked(conn: sqlite3.Connection) -> sqlite3.Connection:
    """A journal with one acknowledged operation."""
    add(conn, "one", "two")
    set_states(conn, ACKED)
    return conn


def due(conn: sqlite3.Connection, now_ms: int = NOW_MS, **more: bool) -> DueAudit:
    return audit_state.next_due(conn, now_ms, DAY_MS, "w", **more)


def test_a_session_without_acknowledged_operations_is_not_audited(conn: sqlite3.Connection) -> None:
    """The server has nothing that it could lose."""
    add(conn, "one")
    assert due(conn) == DueAudit(None, DAY_MS)
    assert audit_state.audit_overview(conn, NOW_MS, 1) == AuditOverview(0, 0, 0, 0)


def test_an_audit_is_due_an_interval_after_the_last(acked: sqlite3.Connection) -> None:
    """The interval of a session differs by at most a tenth."""
    audit_state.record_audit(acked, SESSION, NOW_MS)
    name, wait_ms = due(acked)
    assert name is None
    assert 0.9 * DAY_MS <= wait_ms <= 1.1 * DAY_MS
    assert due(acked, NOW_MS + wait_ms - 1).session_id is None
    assert due(acked, NOW_MS + wait_ms) == DueAudit("talk", 0)


def test_an_excluded_session_is_not_due(acked: sqlite3.Connection) -> None:
    """Its last audit has failed."""
    audit_state.suspect(acked, SESSION, NOW_MS, 1)
    assert due(acked) == DueAudit("talk", 0)
    assert audit_state.next_due(acked, NOW_MS, DAY_MS, "w", {"talk"}) == DueAudit(None, DAY_MS)


def test_only_suspects_are_due_during_a_rest(acked: sqlite3.Connection) -> None:
    """Other sessions wait, however late they are."""
    audit_state.record_audit(acked, SESSION, NOW_MS - 9 * DAY_MS)
    assert due(acked, suspects_only=True).session_id is None
    audit_state.suspect(acked, SESSION, NOW_MS, 1)
    assert due(acked, suspects_only=True).session_id == "talk"


def test_a_session_is_not_suspected_again_during_the_grace(acked: sqlite3.Connection) -> None:
    """Its last audit has looked for the loss already."""
    audit_state.record_audit(acked, SESSION, NOW_MS)
    audit_state.suspect(acked, SESSION, NOW_MS + 999, 1000)
    assert due(acked).session_id is None
    audit_state.suspect(acked, SESSION, NOW_MS + 1000, 1000)
    assert due(acked).session_id == "talk"


def test_first_audits_are_spread_over_the_interval() -> None:
    """By session and by opening, and in the same way each time."""
    marks = [audit_state.first_mark(NOW_MS, DAY_MS, "w", str(number)) for number in range(100)]
    assert all(NOW_MS - DAY_MS <= mark <= NOW_MS for mark in marks)
    assert max(marks) - min(marks) > 0.9 * DAY_MS
    assert marks[0] == audit_state.first_mark(NOW_MS, DAY_MS, "w", "0")
    assert marks[0] != audit_state.first_mark(NOW_MS, DAY_MS, "v", "0")


def test_a_mark_from_the_future_is_set_anew(acked: sqlite3.Connection) -> None:
    """Somebody has moved the clock back since."""
    audit_state.record_audit(acked, SESSION, NOW_MS + 9 * DAY_MS)
    assert due(acked).wait_ms <= 1.1 * DAY_MS


def test_the_overview_counts_suspected_and_late_sessions(acked: sqlite3.Connection) -> None:
    """A suspected session is not late as well."""
    audit_state.record_audit(acked, SESSION, NOW_MS - 100)
    assert audit_state.audit_overview(acked, NOW_MS, 100) == AuditOverview(1, 0, 0, 0)
    assert audit_state.audit_overview(acked, NOW_MS, 99) == AuditOverview(1, 0, 1, NOW_MS - 100)
    audit_state.suspect(acked, SESSION, NOW_MS, 1)
    assert audit_state.audit_overview(acked, NOW_MS, 99) == AuditOverview(1, 1, 0, 0)


def test_a_plan_needs_the_visible_items(acked: sqlite3.Connection) -> None:
    """Popped items are deleted, and visible ones have to be there."""
    dot = Dot(ME, 1)
    nothing = ServerListing(SESSION.key)
    assert audit_state.plan_audit(acked, SESSION, nothing) == AuditPlan(resend=[1])
    everything = ServerListing(SESSION.key, {dot: {(0, 0): 1, (1, 0): 1}})
    assert audit_state.plan_audit(acked, SESSION, everything) == AuditPlan()
    assert pop(acked) == "two"
    assert audit_state.plan_audit(acked, SESSION, everything).forget == [Forget(dot, 1, 1)]
    assert audit_state.plan_audit(acked, UNKNOWN, everything) == AuditPlan()


def test_a_plan_explains_parked_operations(acked: sqlite3.Connection) -> None:
    """Pops as well as appends."""
    pop(acked)
    set_states(acked, PARKED)
    plan = audit_state.plan_audit(acked, SESSION, ServerListing(SESSION.key))
    assert plan == AuditPlan(explain=[1, 2])


def test_forgets_are_queued_once(acked: sqlite3.Connection) -> None:
    """They wait for no acknowledgement."""
    forget = Forget(Dot(ME, 1), 1, 2)
    for _ in range(2):
        audit_state.queue_forgets(acked, SESSION, [forget])
    audit_state.queue_forgets(acked, UNKNOWN, [forget])
    rows = acked.execute("SELECT * FROM forgets").fetchall()
    assert [row[1:] for row in rows] == [(ME, 1, 1, 2, "", 0)]
