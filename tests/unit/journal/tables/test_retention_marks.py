"""When the server was last asked to keep a session."""

from __future__ import annotations

import sqlite3

from cached_session.journal.tables.retention_marks import guarded_ms, is_unguarded, record_guard
from tests.unit.journal.tables.operations import (
    S,
    add,
)


def test_a_guard_is_recorded_with_its_problem(conn: sqlite3.Connection) -> None:
    """The next one replaces it; a session that the journal does not know has none."""
    add(conn, "a")
    assert (guarded_ms(conn, S), is_unguarded(conn, S)) == (0, False)
    record_guard(conn, S, 1000, "the key may not")
    assert (guarded_ms(conn, S), is_unguarded(conn, S)) == (1000, True)
    record_guard(conn, S, 2000, "")
    assert (guarded_ms(conn, S), is_unguarded(conn, S)) == (2000, False)
    record_guard(conn, "unknown", 1000, "no")
    assert (guarded_ms(conn, "unknown"), is_unguarded(conn, "unknown")) == (0, False)
