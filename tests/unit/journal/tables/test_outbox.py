"""The outbox: taking, acknowledging and deleting."""

from __future__ import annotations

import sqlite3

from cached_session.history.ops import GONE, Dot, ItemRef, Kind, Operation, encode_pop
from cached_session.journal.tables import (
    apply,
    item_rows,
    outbox,
    status_counts,
    writes,
)
from cached_session.journal.tables.outbox import Forget, pending_sessions
from cached_session.journal.tables.states import ACKED, PARKED, PENDING, SENT
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
    """The outbox gives whole operations in counter order, of one session only, until acked."""
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


def test_what_is_taken_fits_the_request(conn: sqlite3.Connection) -> None:
    """Operations, items and bytes bound what is taken; the first goes whatever its size."""
    for _ in range(4):
        add(conn, "x" * 98, "y" * 98)
    assert len(take(conn, most_ops=4)) == 2
    assert len(take(conn, most_ops=5)) == 2
    assert len(take(conn, most_bytes=600)) == 3
    assert len(take(conn, most_bytes=599)) == 2
    assert len(take(conn, most_bytes=1)) == 1
    assert len(take(conn, most_ops=1)) == 1


def test_states_go_forward_only(conn: sqlite3.Connection) -> None:
    """Pending becomes sent before a request leaves, acked on its answer; sending again moves no
    operation back, and what is parked is left to a person."""
    for item in "abcd":
        add(conn, item)
    seqs = [out.seq for out in take(conn, upto=2)]
    assert states(conn) == [SENT, SENT, PENDING, PENDING]
    outbox.acknowledge(conn, seqs[:1])
    outbox.park(conn, 3, "400: no")
    assert [out.seq for out in take(conn)] == [seqs[1], 4]
    assert states(conn) == [ACKED, SENT, PARKED, SENT]
    assert [entry.sync_state for entry in item_rows.entries(conn, S, None)] == [
        "acked",
        "sent",
        "parked",
        "sent",
    ]
    facts = status_counts.counts_of(conn, 1, 0, 0)
    assert (facts.items, facts.pending, facts.parked) == (4, 2, 1)


def test_nothing_is_forgotten_before_its_removal_is_on_the_server(
    conn: sqlite3.Connection,
) -> None:
    """The memories of a removed item are forgotten once both its append and its removal are
    acked, with all their parts, and until the server has answered."""
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


def test_what_was_sent_again_is_forgotten_with_anybodys_removal(conn: sqlite3.Connection) -> None:
    """What others remove they have forgotten themselves; but what was stored once more before their
    removal was known here may have come after that."""
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


def test_a_clear_has_all_it_removed_forgotten(conn: sqlite3.Connection) -> None:
    """After a clear is acked, every item that it hid is due, as many at a time as asked for."""
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


def test_nothing_is_written_where_there_is_nothing_to_say(conn: sqlite3.Connection) -> None:
    """Popping or clearing an empty or unknown session records no operation."""
    assert pop(conn) is None
    writes.clear(conn, author(), S)
    add(conn, "a")
    assert pop(conn) == "a"
    assert pop(conn) is None
    writes.clear(conn, author(), S)
    assert [out.op.kind for out in take(conn)] == [Kind.APPEND, Kind.POP]


def test_an_undecodable_item_is_passed_over_by_a_pop(conn: sqlite3.Connection) -> None:
    """A corrupt row is neither popped nor deleted; the latest readable item is."""
    add(conn, "a", "b")
    conn.execute("UPDATE items SET payload = '{' WHERE idx = 1")
    assert pop(conn) == "a"
    assert conn.execute("SELECT idx, payload FROM items").fetchall() == [(1, "{")]


def test_who_has_something_to_send_costs_no_more_for_a_long_queue(
    conn: sqlite3.Connection,
) -> None:
    """Sessions with something unsent, unforgotten or unsettled, each once, whatever else is parked;
    the question, asked on the event loop at each write, takes the same steps for a queue of
    ten thousand as for one of ten."""
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
            f"(SELECT session FROM ops WHERE state NOT IN ({ACKED}, {PARKED}))"
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
