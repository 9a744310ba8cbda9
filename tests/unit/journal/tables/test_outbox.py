from __future__ import annotations

import json
import sqlite3

import pytest

from cached_session.history.ops import GONE, Dot, ItemRef, Kind, Operation, encode_pop
from cached_session.journal.sqlite.codec import encode_items
from cached_session.journal.tables import (
    apply,
    item_rows,
    outbox,
    parked_operations,
    pauses,
    status_counts,
    writes,
)
from cached_session.journal.tables.meta import read_meta
from cached_session.journal.tables.outbox import Forget, pending_sessions
from cached_session.journal.tables.sessions import forget_server, session_row
from cached_session.journal.tables.states import ACKED, PARKED, PENDING, SENT
from cached_session.journal.tables.status_counts import all_pauses

S = "talk"
ME = "mewriter"


def author(now_ms: int = 1, writer: str = ME) -> writes.Author:
    return writes.Author(writer, now_ms, 600_000)


def add(conn: sqlite3.Connection, *items: object, session: str = S) -> None:
    writes.append(conn, author(), session, encode_items(items), private=False)


def pop(conn: sqlite3.Connection) -> object:
    popped = writes.pop(conn, author(), S)
    return popped and json.loads(popped.row[0])


def states(conn: sqlite3.Connection) -> list[int]:
    return [state for (state,) in conn.execute("SELECT state FROM ops ORDER BY seq")]


def items(conn: sqlite3.Connection) -> list[object]:
    return [entry.item for entry in item_rows.entries(conn, S, None)]


def take(conn: sqlite3.Connection, **limits: int) -> list[outbox.Outgoing]:
    limits = {"after": 0, "upto": 1 << 40, "most_ops": 1000, "most_bytes": 1 << 20, **limits}
    seqs = outbox.take(conn, S, **limits)
    return outbox.load_by_seq(conn, seqs)


def ack_all(conn: sqlite3.Connection) -> None:
    outbox.acknowledge(conn, [out.seq for out in take(conn)])


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


def test_what_the_server_has_taken_meanwhile_is_not_parked(conn: sqlite3.Connection) -> None:
    """Two processes may push one operation at a time, and only one of them be refused."""
    add(conn, "a")
    (out,) = take(conn)
    outbox.acknowledge(conn, [out.seq])
    assert not outbox.park(conn, out.seq, "400: no")
    assert states(conn) == [ACKED]
    assert parked_operations.parked(conn, S) == []


def test_what_is_parked_stays_readable_and_can_be_retried(conn: sqlite3.Connection) -> None:
    """A parked operation is shown with its reason and its items; a retry puts it back in its old
    place, and its placeholder is forgotten once it has arrived."""
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
    """Dropping a parked append takes its items away here too, and its dot is not used again."""
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
    """What a pop removed is gone here: were it dropped, no other replica could ever agree."""
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
    """An operation that was retried, parked again and dropped goes on being explained to others."""
    add(conn, "a")
    (out,) = take(conn)
    for _ in range(2):
        outbox.park(conn, out.seq, "no")
        assert parked_operations.retry_parked(conn, S, None) == 1
    outbox.park(conn, out.seq, "no")
    assert parked_operations.drop_parked(conn, S, [out.op.dot]) == 1
    assert outbox.forgets_due(conn, S, 9) == []


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


# -- gates -----------------------------------------------------------------------------------------


def shut(conn: sqlite3.Connection, session: str | None, pause_ms: int, now_ms: int) -> None:
    pauses.record_failure(
        conn, session, pause_ms=pause_ms, now_ms=now_ms, kind="busy", reason=f"at {now_ms}"
    )


def test_a_gate_waits_its_pause_and_no_longer(conn: sqlite3.Connection) -> None:
    """A gate is shut for its pause from the moment of the failure, and counts failures."""
    add(conn, "a")
    for session in (None, S):
        shut(conn, session, 500, 1000)
        shut(conn, session, 900, 2000)
        gate = pauses.pause_of(conn, session)
        assert (gate.failures, gate.since_ms, gate.reason) == (2, 1000, "at 2000")
        waits = [gate.wait_ms(now) for now in (2000, 2001, 2899, 2900, 10**9)]
        assert waits == [900, 899, 1, 0, 0]
    assert read_meta(conn)["last_error"] == "at 2000"
    assert read_meta(conn)["last_error_ms"] == "2000"


@pytest.mark.parametrize("moved", [1, 10_000, 10**12])
def test_a_gate_is_void_when_the_clock_was_moved_back(conn: sqlite3.Connection, moved: int) -> None:
    """A gate further away than its own pause was set by a clock that has been moved since: it
    holds nobody up."""
    shut(conn, None, 500, 10**12)
    gate = pauses.pause_of(conn, None)
    assert gate.wait_ms(10**12) == 500
    assert gate.wait_ms(10**12 - moved) == 0


def test_a_success_opens_the_gates(conn: sqlite3.Connection) -> None:
    """An answer opens the server's gate and the session's own, and no other session's."""
    add(conn, "a")
    add(conn, "b", session="other")
    for session in (None, S, "other"):
        shut(conn, session, 500, 1000)
    pauses.end_pauses(conn, S)
    assert pauses.pause_of(conn, None) is None
    assert pauses.pause_of(conn, S) is None
    assert pauses.pause_of(conn, "other") is not None
    assert len(all_pauses(conn)) == 1
    shut(conn, None, 500, 1000)
    pauses.end_pauses(conn, "unknown")
    assert pauses.pause_of(conn, None) is None


def test_a_session_that_was_only_heard_of_keeps_its_pause(conn: sqlite3.Connection) -> None:
    """A failure before anything of a session is in the journal pauses it all the same."""
    assert pauses.pause_of(conn, "heard of") is None
    shut(conn, "heard of", 500, 1000)
    assert pauses.pause_of(conn, "heard of").wait_ms(1000) == 500
    pauses.end_pauses(conn, "heard of")
    assert pauses.pause_of(conn, "heard of") is None


def test_another_server_is_told_everything(conn: sqlite3.Connection) -> None:
    """When the journal goes on with another server, all that can be said again is sent, and
    only what never was counts so."""
    for item in "abc":
        add(conn, item)
    first, second, _ = take(conn)
    outbox.acknowledge(conn, [first.seq])
    outbox.park(conn, second.seq, "no")
    add(conn, "d")
    shut(conn, None, 500, 1000)
    forget_server(conn)
    assert states(conn) == [SENT, SENT, SENT, PENDING]
    assert pauses.pause_of(conn, None) is None


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
