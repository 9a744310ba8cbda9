"""How far a listing has been read, as the journal stores it."""

from __future__ import annotations

import sqlite3

from cached_session.history.session_ref import SessionRef
from cached_session.journal.tables.meta import read_meta
from cached_session.journal.tables.pull_state import PullState, pull_state_of, record_pull

SESSION = SessionRef.of("talk")


def record(
    conn: sqlite3.Connection, now_ms: int, newest: int, *, is_hydrated: bool = True
) -> PullState:
    record_pull(
        conn,
        SESSION,
        now_ms=now_ms,
        newest_second=newest,
        is_hydrated=is_hydrated,
        unreadable=3,
    )
    return pull_state_of(conn, SESSION)


def test_an_unknown_session_has_not_been_pulled(conn: sqlite3.Connection) -> None:
    """Its listing has to be read down to the end."""
    assert pull_state_of(conn, SESSION) == PullState()


def test_a_pull_makes_a_session_known(conn: sqlite3.Connection) -> None:
    """Also where the server has nothing of it."""
    assert record(conn, 100, 0) == PullState(True, True, 0, 0)
    assert conn.execute("SELECT pulled_ms, unreadable FROM sessions").fetchone() == (100, 3)
    assert read_meta(conn)["last_success_ms"] == "100"


def test_a_session_stays_hydrated(conn: sqlite3.Connection) -> None:
    """A later pull that does not reach the known part changes nothing about that."""
    assert not record(conn, 100, 7, is_hydrated=False).is_hydrated
    assert record(conn, 200, 7, is_hydrated=True).is_hydrated
    assert record(conn, 300, 7, is_hydrated=False).is_hydrated


def test_the_age_of_the_newest_memory_counts_from_its_first_pull(conn: sqlite3.Connection) -> None:
    """Pulls that list the same newest memory do not make it younger."""
    assert record(conn, 100, 7).since_ms == 100
    assert record(conn, 200, 7).since_ms == 100
    assert record(conn, 300, 8) == PullState(True, True, 8, 300)
    assert record(conn, 400, 7) == PullState(True, True, 7, 400)


def test_an_age_from_the_future_is_measured_again(conn: sqlite3.Connection) -> None:
    """The wall clock was moved back since."""
    record(conn, 10**9, 7)
    assert record(conn, 100, 7).since_ms == 100
