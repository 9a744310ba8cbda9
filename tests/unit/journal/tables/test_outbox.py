"""The outbox: taking, acknowledging and deleting."""

from __future__ import annotations

import sqlite3

from cached_session.history.ops import GONE, Dot, ItemRef, Kind, Operation, encode_pop
from cached_session.journal.tables import (
    apply,
    entry_rows,
    outbox,
    status_counts,
    writes,
)
from cached_session.journal.tables.outbox import Forget, pending_sessions
from cached_session.journal.tables.states import ACKED, PARKED, PENDING, SENT
from tests.journal_rows import change_payloads, items_of
from tests.unit.journal.tables.operations import (
    ME,
    S,
    ack_all,
    add,
    author,
    items,
    pop,
    states,
    take,
)


def test_operations_leave_in_the_order_of_writing(conn: sqlite3.Connection) -> None:
    """Whole operations of one session are taken in the order of their counters, until they are
    acknowledged."""
    add(conn, "a", "b")
    add(conn, "elsewhere", session="other")
    pop(conn)
    add(conn, "c")
    taken = take(conn)
    assert [(out.op.dot, out.op.kind.value) for out in taken] == [
        ((ME, 1), "append"),
        ((ME, 2), "pop"),
        ((ME, 3), "append"),
    ]
    assert taken[0].op.payloads == ('"a"', GONE)
    assert take(conn, after=taken[0].seq) == taken[1:]
    assert outbox.take(conn, "unknown", after=0, upto=9, most_ops=9, most_bytes=9) == []
    outbox.acknowledge(conn, [taken[0].seq, taken[2].seq])
    assert take(conn) == [taken[1]]
    assert pending_sessions(conn) == [S, "other"]


def test_one_take_is_bounded(conn: sqlite3.Connection) -> None:
    """By operations, items and bytes. The first operation is taken whatever its size."""
    for _ in range(4):
        add(conn, "x" * 98, "y" * 98)
    assert len(take(conn, most_ops=4)) == 2
    assert len(take(conn, most_ops=5)) == 2
    assert len(take(conn, most_bytes=600)) == 3
    assert len(take(conn, most_bytes=599)) == 2
    assert len(take(conn, most_bytes=1)) == 1
    assert len(take(conn, most_ops=1)) == 1


def test_states_go_forward_only(conn: sqlite3.Connection) -> None:
    """An operation is pending, then sent before its request leaves, then acknowledged. Sending it
    again does not move it back, and a parked one is not taken."""
    for item in "abcd":
        add(conn, item)
    seqs = [out.seq for out in take(conn, upto=2)]
    assert states(conn) == [SENT, SENT, PENDING, PENDING]
    outbox.acknowledge(conn, seqs[:1])
    outbox.park(conn, 3, "400: no")
    assert [out.seq for out in take(conn)] == [seqs[1], 4]
    assert states(conn) == [ACKED, SENT, PARKED, SENT]
    assert [entry.sync_state for entry in entry_rows.entries(conn, S, None)] == [
        "acked",
        "sent",
        "parked",
        "sent",
    ]
    facts = status_counts.counts_of(conn, 1, 0, 0)
    assert (facts.items, facts.pending, facts.parked) == (4, 2, 1)


def test_no_memory_is_deleted_before_its_removal_is_acknowledged(
    conn: sqlite3.Connection,
) -> None:
    """All memories of a removed item are due when the server has acknowledged both its append and
    its removal, until their deletion was answered."""
    add(conn, "a", "x" * 60_000)
    assert pop(conn) == "x" * 60_000
    append, removal = take(conn)
    assert outbox.forgets_due(conn, S, 9) == []
    outbox.acknowledge(conn, [removal.seq])
    assert outbox.forgets_due(conn, S, 9) == []
    outbox.acknowledge(conn, [append.seq])
    due = outbox.forgets_due(conn, S, 9)
    assert due == [Forget(Dot(ME, 1), 1, 5)]
    assert pending_sessions(conn) == [S]
    outbox.delete_forgets(conn, S, due)
    assert outbox.forgets_due(conn, S, 9) == []
    assert pending_sessions(conn) == []
    assert outbox.forgets_due(conn, "unknown", 9) == []


def test_an_item_that_was_sent_again_is_deleted_after_a_removal_elsewhere(
    conn: sqlite3.Connection,
) -> None:
    """The device that removes an item deletes it. But one that was stored once more, before the
    removal was known here, may have arrived after that deletion."""
    add(conn, "once")
    add(conn, "again")
    first, second = take(conn)
    outbox.acknowledge(conn, [first.seq])
    take(conn)
    ack_all(conn)
    for counter, out in enumerate((first, second), start=1):
        removal = encode_pop(ItemRef(out.op.dot, 0, 1))
        tx = apply.SessionTransaction.begin(conn, S)
        assert tx is not None
        tx.apply(Operation(Dot("other", counter), Kind.POP, 1 << 20, 1, (removal,)))
        tx.finish()
    assert items(conn) == []
    assert outbox.forgets_due(conn, S, 9) == [Forget(second.op.dot, 0, 1)]


def test_a_clear_deletes_all_items_that_it_has_removed(conn: sqlite3.Connection) -> None:
    """After the clear is acknowledged, as many at a time as the caller asks for."""
    add(conn, "a", "b")
    add(conn, "c")
    writes.clear(conn, author(), S)
    ack_all(conn)
    assert len(outbox.forgets_due(conn, S, 2)) == 2
    assert {(f.dot.counter, f.index) for f in outbox.forgets_due(conn, S, 9)} == {
        (1, 0),
        (1, 1),
        (2, 0),
    }
    assert items(conn) == []


def test_removing_nothing_writes_nothing(conn: sqlite3.Connection) -> None:
    """A pop or a clear of an empty or unknown session is not an operation."""
    assert pop(conn) is None
    writes.clear(conn, author(), S)
    add(conn, "a")
    assert pop(conn) == "a"
    assert pop(conn) is None
    writes.clear(conn, author(), S)
    assert [out.op.kind for out in take(conn)] == [Kind.APPEND, Kind.POP]


def test_a_pop_passes_over_an_item_that_cannot_be_decoded(conn: sqlite3.Connection) -> None:
    """It removes the latest readable item, and leaves the damaged row."""
    add(conn, "a", "b")
    assert change_payloads(conn, lambda at, text: b"{" if at == 1 else text) == 1
    assert pop(conn) == "a"
    assert [row[2:] for row in items_of(conn, S)] == [(1, "{")]


def test_the_query_for_pending_sessions_is_as_cheap_for_a_long_queue(
    conn: sqlite3.Connection,
) -> None:
    """It returns sessions with operations to send, memories to delete or claims to resolve, each
    once. It runs on the event loop after each write, and takes as many steps for a queue of ten
    thousand operations as for one of ten."""
    for number in range(12):
        for item in range(number % 4):
            add(conn, item, session=f"{number}")
    for number in range(3):
        add(conn, "parked", session=f"{number}")
    for seq, name in conn.execute(
        "SELECT o.seq, s.session_id FROM ops o JOIN sessions s ON s.id = o.session"
    ).fetchall():
        if int(name) % 3 == 1:
            outbox.acknowledge(conn, [seq])
        elif int(name) in (0, 2):
            outbox.park(conn, seq, "no")
    conn.execute("INSERT INTO forgets SELECT id, 'w', 1, 0, 1, '', 0 FROM sessions WHERE id = 2")
    conn.execute("INSERT INTO claims SELECT id, 'w', 1, 0, 'c', 0, 0 FROM sessions WHERE id = 5")
    wanted = {
        name
        for (name,) in conn.execute(
            "SELECT session_id FROM sessions WHERE id IN (2, 5) OR id IN "
            f"(SELECT session FROM waiting WHERE state <> {PARKED})"
        )
    }
    assert len(wanted) == 6
    steps = []
    for _ in range(2):
        taken = 0

        def step() -> int:
            nonlocal taken
            taken += 1
            return 0

        conn.set_progress_handler(step, 1)
        found = pending_sessions(conn)
        conn.set_progress_handler(None, 0)
        assert len(found) == len(set(found))
        assert set(found) == wanted
        steps.append(taken)
        for item in range(10_000):
            add(conn, item, session="3")
    assert steps[0] == steps[1]
