"""Pauses as rows."""

from __future__ import annotations

import sqlite3

import pytest

from cached_session.journal.tables import pauses
from cached_session.journal.tables.meta import read_meta
from cached_session.journal.tables.status_counts import all_pauses
from tests.journal_rows import spoil
from tests.unit.journal.tables.operations import (
    S,
    add,
)


def fail(conn: sqlite3.Connection, session: str | None, pause_ms: int, now_ms: int) -> None:
    pauses.record_failure(
        conn, session, pause_ms=pause_ms, now_ms=now_ms, kind="busy", reason=f"at {now_ms}"
    )


def test_a_pause_ends_after_its_time(conn: sqlite3.Connection) -> None:
    """A pause counts from the last failure, and knows how many there were since the first."""
    add(conn, "a")
    for session in (None, S):
        fail(conn, session, 500, 1000)
        fail(conn, session, 900, 2000)
        pause = pauses.pause_of(conn, session)
        assert (pause.failures, pause.since_ms, pause.reason) == (2, 1000, "at 2000")
        waits = [pause.wait_ms(now) for now in (2000, 2001, 2899, 2900, 10**9)]
        assert waits == [900, 899, 1, 0, 0]
    assert read_meta(conn)["last_error"] == "at 2000"
    assert read_meta(conn)["last_error_ms"] == "2000"


@pytest.mark.parametrize("moved", [1, 10_000, 10**12])
def test_a_pause_is_void_after_the_clock_went_back(conn: sqlite3.Connection, moved: int) -> None:
    """A pause that would last longer than its own length from now does not delay an attempt."""
    fail(conn, None, 500, 10**12)
    pause = pauses.pause_of(conn, None)
    assert pause.wait_ms(10**12) == 500
    assert pause.wait_ms(10**12 - moved) == 0


def test_a_success_ends_the_pauses(conn: sqlite3.Connection) -> None:
    """An answer ends the pause of the server and of its session, and of no other session."""
    add(conn, "a")
    add(conn, "b", session="other")
    for session in (None, S, "other"):
        fail(conn, session, 500, 1000)
    pauses.end_pauses(conn, S)
    assert pauses.pause_of(conn, None) is None
    assert pauses.pause_of(conn, S) is None
    assert pauses.pause_of(conn, "other") is not None
    assert len(all_pauses(conn)) == 1
    fail(conn, None, 500, 1000)
    pauses.end_pauses(conn, "unknown")
    assert pauses.pause_of(conn, None) is None


def test_a_session_without_operations_keeps_its_pause(conn: sqlite3.Connection) -> None:
    """The first request of a session may fail before the journal holds anything of it."""
    assert pauses.pause_of(conn, "new") is None
    fail(conn, "new", 500, 1000)
    assert pauses.pause_of(conn, "new").wait_ms(1000) == 500
    pauses.end_pauses(conn, "new")
    assert pauses.pause_of(conn, "new") is None


def test_a_pause_that_the_server_asked_for_stays_until_its_time_is_over(
    conn: sqlite3.Connection,
) -> None:
    """A success in between ends the others alone."""
    fail(conn, None, 500, 1000)
    fail(conn, S, 500, 1000)
    pauses.end_pauses(conn, S, now_ms=1499, except_kind="busy")
    assert len(pauses.active_pauses(conn, S).each()) == 2
    pauses.end_pauses(conn, S, now_ms=1499, except_kind="other")
    assert pauses.active_pauses(conn, S) == pauses.ActivePauses(None, None)
    fail(conn, S, 500, 1000)
    pauses.end_pauses(conn, S, now_ms=1500, except_kind="busy")
    assert pauses.pause_of(conn, S) is None


def test_waiting_sessions_are_counted_by_kind(conn: sqlite3.Connection) -> None:
    """Without the session that asks, the server, and pauses whose time is over."""
    for session in (None, S, "b", "c"):
        fail(conn, session, 500, 1000)
    fail(conn, "over", 10, 1000)
    assert pauses.count_waiting(conn, "busy", 1400, S) == 2
    assert pauses.count_waiting(conn, "busy", 1400, "unknown") == 3
    assert pauses.count_waiting(conn, "unreachable", 1400, S) == 0


def test_a_damaged_pause_is_reported(conn: sqlite3.Connection) -> None:
    """Its numbers are computed with where no error starts the search for damage."""
    fail(conn, None, 500, 1000)
    spoil(conn, "UPDATE gates SET until_ms = 'soon'")
    with pytest.raises(ValueError, match="integers"):
        pauses.pause_of(conn, None)
