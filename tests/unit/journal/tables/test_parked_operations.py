"""Parked operations: listing, retrying and dropping."""

from __future__ import annotations

import sqlite3

from cached_session.history.ops import Dot
from cached_session.journal.tables import outbox, parked_operations
from cached_session.journal.tables.outbox import Forget
from cached_session.journal.tables.sessions import session_row
from cached_session.journal.tables.states import ACKED
from tests.unit.journal.tables.operations import (
    ME,
    S,
    ack_all,
    add,
    items,
    pop,
    states,
    take,
)


def test_an_acknowledged_operation_is_not_parked(conn: sqlite3.Connection) -> None:
    """Two processes may push the same operation, and the server may refuse only one of them."""
    add(conn, "a")
    (out,) = take(conn)
    outbox.acknowledge(conn, [out.seq])
    assert not outbox.park(conn, out.seq, "400: no")
    assert states(conn) == [ACKED]
    assert parked_operations.parked(conn, S) == []


def test_a_parked_operation_stays_readable_and_can_be_retried(conn: sqlite3.Connection) -> None:
    """It is listed with its reason and its items. A retry sends it in its old order, and its
    placeholder is deleted after it has arrived."""
    add(conn, {"a": 1 << 70}, "b")
    pop(conn)
    add(conn, "c")
    first, second, third = take(conn)
    outbox.park(conn, first.seq, "413: too large")
    outbox.park(conn, second.seq, "400: no")
    outbox.acknowledge(conn, [third.seq])
    found = parked_operations.parked(conn, S)
    assert [(one.kind, one.error, one.items) for one in found] == [
        ("append", "413: too large", [{"a": 1 << 70}]),
        ("pop", "400: no", []),
    ]
    assert parked_operations.parked(conn, None) == found
    assert parked_operations.parked(conn, "unknown") == []
    assert items(conn) == [{"a": 1 << 70}, "c"]
    assert parked_operations.retry_parked(conn, S, [first.op.dot, third.op.dot]) == 1
    assert parked_operations.retry_parked(conn, "unknown", None) == 0
    assert take(conn)[0].op == first.op
    assert outbox.forgets_due(conn, S, 9) == []
    outbox.acknowledge(conn, [first.seq])
    assert outbox.forgets_due(conn, S, 9) == [Forget(first.op.dot, -1, 1)]
    assert parked_operations.retry_parked(conn, S, None) == 1
    assert parked_operations.parked(conn, S) == []


def test_a_dropped_append_leaves_the_history(conn: sqlite3.Connection) -> None:
    """Its items disappear here as well, and its dot is not used again."""
    add(conn, "a")
    add(conn, "b", "c")
    add(conn, "d")
    out = take(conn)[1]
    outbox.park(conn, out.seq, "no")
    assert parked_operations.drop_parked(conn, S, [Dot(ME, 1)]) == 0
    assert parked_operations.drop_parked(conn, S, [out.op.dot]) == 1
    assert parked_operations.drop_parked(conn, "unknown", [out.op.dot]) == 0
    assert items(conn) == ["a", "d"]
    assert session_row(conn, S)[1] == 2
    add(conn, "e")
    assert [out.op.dot.counter for out in take(conn)] == [1, 3, 4]


def test_a_parked_pop_is_not_dropped(conn: sqlite3.Connection) -> None:
    """The item that it removed cannot be restored here, so that replicas would differ for good."""
    add(conn, "a", "b")
    ack_all(conn)
    assert pop(conn) == "b"
    (out,) = take(conn)
    outbox.park(conn, out.seq, "no")
    assert parked_operations.drop_parked(conn, S, [out.op.dot]) == 0
    assert [parked.kind for parked in parked_operations.parked(conn, S)] == ["pop"]
    assert items(conn) == ["a"]
    assert outbox.forgets_due(conn, S, 9) == []


def test_a_dropped_operation_keeps_its_placeholder(conn: sqlite3.Connection) -> None:
    """It still explains the gap to other devices, also after a retry."""
    add(conn, "a")
    (out,) = take(conn)
    for _ in range(2):
        outbox.park(conn, out.seq, "no")
        assert parked_operations.retry_parked(conn, S, None) == 1
    outbox.park(conn, out.seq, "no")
    assert parked_operations.drop_parked(conn, S, [out.op.dot]) == 1
    assert outbox.forgets_due(conn, S, 9) == []
