"""The turn of an answered tool call, found by the id of the call."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing

import pytest

from cached_session.history.ops import Dot, ItemRef, Kind, Operation, TurnKey, encode_pop
from cached_session.history.turns import TurnChoice
from cached_session.journal.sqlite.codec import encode_items
from cached_session.journal.tables import calls, schema, writes
from cached_session.journal.tables.apply import SessionTransaction
from cached_session.journal.tables.calls import CANDIDATES_MOST, turn_of_calls
from tests.unit.journal.tables.arrivals import SESSION, arrive, author, remote

STEPS = 1000
"""Steps of SQLite between two calls of the progress handler."""


@pytest.fixture
def conn() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as conn:
        schema.prepare(conn, ":memory:")
        yield conn


def call(call_id: str) -> dict[str, str]:
    return {"type": "function_call", "call_id": call_id, "name": "look", "arguments": "{}"}


def answer(call_id: str) -> dict[str, str]:
    return {"type": "function_call_output", "call_id": call_id, "output": "found"}


def add(conn: sqlite3.Connection, *items: object, choice: TurnChoice = writes.NEW_TURN) -> TurnKey:
    """Append a batch; return its turn."""
    batch = encode_items(items)
    written = writes.append(conn, author(), SESSION.name, batch, private=False, choice=choice)
    assert written.turn is not None
    return written.turn


def forged(stamp: int, counter: int, *call_ids: str, writer: str = "other000") -> Operation:
    """Return an append of another device with calls."""
    payloads = tuple(json.dumps(call(call_id)) for call_id in call_ids)
    return Operation(Dot(writer, counter), Kind.APPEND, stamp, 9, payloads)


def test_an_answer_joins_the_turn_of_its_call(conn: sqlite3.Connection) -> None:
    """Other turns may lie between the two. An unknown id has no turn."""
    turn = add(conn, "question", call("a"), call("b"))
    other = add(conn, "another question")
    assert turn != other
    assert add(conn, answer("b"), choice=TurnChoice(answers=("b",), open=other)) == turn
    assert turn_of_calls(conn, 1, ["a"]) == turn_of_calls(conn, 1, ["none", "b"]) == turn
    assert turn_of_calls(conn, 1, ["none"]) is turn_of_calls(conn, 1, []) is None
    assert turn_of_calls(conn, 2, ["a"]) is None


def test_the_newest_call_with_an_id_counts(conn: sqlite3.Connection) -> None:
    """By the order of the history, whatever the order of arrival. A model may number its calls, so
    that many turns have the same id."""
    turns = [add(conn, call("call_1")) for _ in range(CANDIDATES_MOST + 10)]
    assert turn_of_calls(conn, 1, ["call_1"]) == turns[-1]
    arrive(conn, forged(1, 1, "call_1", writer="zzzzzzzz"))
    assert turn_of_calls(conn, 1, ["call_1"]) == turns[-1]
    newer = forged(turns[-1].stamp + 1, 1, "call_1", writer="aaaaaaaa")
    arrive(conn, newer)
    assert turn_of_calls(conn, 1, ["call_1"]) == newer.turn_key


def test_the_newest_of_several_answered_calls_counts(conn: sqlite3.Connection) -> None:
    """A batch that answers calls of two turns joins the later one."""
    first, last = add(conn, call("a")), add(conn, call("b"))
    assert first != last
    for ids in (["a", "b"], ["b", "a"]):
        assert turn_of_calls(conn, 1, ids) == last


def test_a_call_of_a_later_part_has_the_turn_of_the_head(conn: sqlite3.Connection) -> None:
    """The turn is that of the append, not the append itself."""
    head = add(conn, "question")
    add(conn, "another turn")
    add(conn, call("a"), choice=TurnChoice(block=head))
    assert turn_of_calls(conn, 1, ["a"]) == head


def test_a_removed_call_is_not_found(conn: sqlite3.Connection) -> None:
    """Its row stays, and the item is looked at. An earlier visible call counts then."""
    first = add(conn, call("a"))
    last = add(conn, call("a"), "word")
    assert turn_of_calls(conn, 1, ["a"]) == last
    place = [(Dot(last.writer, last.counter), 0)]
    assert writes.remove(conn, author(), SESSION.name, place) == 1
    assert turn_of_calls(conn, 1, ["a"]) == first
    writes.clear(conn, author(), SESSION.name)
    assert turn_of_calls(conn, 1, ["a"]) is None


def test_a_call_that_was_popped_before_it_came_is_not_found(conn: sqlite3.Connection) -> None:
    """It never becomes visible."""
    ref = ItemRef(Dot("other000", 1), 0, 1)
    arrive(conn, remote(1, encode_pop(ref), kind=Kind.POP))
    arrive(conn, forged(5, 1, "a"))
    assert turn_of_calls(conn, 1, ["a"]) is None
    assert conn.execute("SELECT count(*) FROM calls").fetchone() == (0,)


def test_ids_with_the_same_hash_are_told_apart(
    conn: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The item has the id itself."""
    monkeypatch.setattr(calls, "_hash", len)
    first, last = add(conn, call("aa")), add(conn, call("bb"))
    assert turn_of_calls(conn, 1, ["aa"]) == first
    assert turn_of_calls(conn, 1, ["bb"]) == last
    assert turn_of_calls(conn, 1, ["aa", "bb"]) == last
    assert turn_of_calls(conn, 1, ["cc"]) is None


def test_forged_calls_do_not_make_a_lookup_slow(conn: sqlite3.Connection) -> None:
    """With 10,000 appends that make a call with the same id, a lookup reads a few of them. A newer
    own call is found all the same."""
    tx = SessionTransaction.create(conn, SESSION.name, 1)
    for counter in range(1, 10_001):
        tx.apply(forged(5, counter, "a"))
    tx.finish()
    turn = add(conn, call("a"))
    steps = 0

    def step() -> int:
        nonlocal steps
        steps += 1
        return 0

    conn.set_progress_handler(step, STEPS)
    assert turn_of_calls(conn, 1, ["a"]) == turn
    assert steps * STEPS <= 5_000
    # Nothing newer is visible any more, and the older calls are not read without end.
    conn.set_progress_handler(None, 0)
    conn.execute("UPDATE ops SET live = 0, body = NULL")
    conn.set_progress_handler(step, STEPS)
    assert turn_of_calls(conn, 1, ["a"]) is None
    assert steps * STEPS <= 20_000


@pytest.mark.parametrize(
    "item",
    [
        call("\ud83d"),
        {**call("a"), "call_id": "x" * 10_000},
        {**call("a"), "call_id": 7},
        {"type": "function_call"},
        {"type": "function_call", "call_id": None, "deep": [[[["tool"]]]]},
        {"role": "user", "content": "a tool call", "big": 1 << 70},
    ],
    ids=["surrogate", "long id", "number", "no id", "null", "large number"],
)
def test_unusual_calls_are_stored(conn: sqlite3.Connection, item: dict[str, object]) -> None:
    """No item makes an append fail. Whether it is found depends on its id."""
    turn = add(conn, item)
    call_id = item.get("call_id")
    if isinstance(call_id, str) and call_id.isascii():
        (known,) = calls.read_batch([item]).made
        assert turn_of_calls(conn, 1, [known]) == turn
    assert turn_of_calls(conn, 1, ["\ud83d", "b"]) in (None, turn)
