"""The server that acknowledgements come from."""

from __future__ import annotations

import sqlite3

from cached_session.journal.tables import outbox, pauses
from cached_session.journal.tables.known_server import (
    answered_server,
    known_server,
    switch_server,
)
from cached_session.journal.tables.meta import note_success
from cached_session.journal.tables.states import ACKED, PARKED, PENDING, SENT
from tests.unit.journal.tables.operations import (
    ack_all,
    add,
    states,
    take,
)


def test_another_server_is_sent_everything(conn: sqlite3.Connection) -> None:
    """All operations go back to the outbox. Those that were never sent still count so."""
    for item in "abc":
        add(conn, item)
    first, second, _ = take(conn)
    outbox.acknowledge(conn, [first.seq])
    outbox.park(conn, second.seq, "no")
    add(conn, "d")
    pauses.record_failure(conn, None, pause_ms=500, now_ms=1000, kind="busy", reason="later")
    assert switch_server(conn, "http://first") is None
    assert states(conn) == [ACKED, PARKED, SENT, PENDING]
    note_success(conn, 1000)
    assert switch_server(conn, "http://second") == "http://first"
    assert known_server(conn) == "http://first", "a journal moves only if it is told to"
    assert states(conn) == [ACKED, PARKED, SENT, PENDING]
    assert switch_server(conn, "http://second", move=True) == "http://first"
    assert known_server(conn) == "http://second"
    assert states(conn) == [SENT, SENT, SENT, PENDING]
    assert pauses.pause_of(conn, None) is None


def test_a_server_that_never_answered_is_replaced(conn: sqlite3.Connection) -> None:
    """Its address may have been mistyped."""
    assert switch_server(conn, "http://typo") is None
    assert answered_server(conn) is None
    assert switch_server(conn, "http://first") == "http://typo"
    assert known_server(conn) == "http://first"


def test_the_same_server_changes_nothing(conn: sqlite3.Connection) -> None:
    """Its acknowledgements stay, however often it is recorded."""
    assert known_server(conn) is None
    add(conn, "a")
    switch_server(conn, "http://first")
    ack_all(conn)
    assert switch_server(conn, "http://first") is None
    assert known_server(conn) == "http://first"
    assert states(conn) == [ACKED]
