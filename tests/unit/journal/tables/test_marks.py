"""Marks: the last one in order counts for its type and key."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing

import pytest

from cached_session.history.frontier import Frontier
from cached_session.history.ops import Dot, Kind, Mark, Operation, encode_clear, encode_mark
from cached_session.journal.tables import schema, writes
from cached_session.journal.tables.apply import SessionTransaction
from cached_session.journal.tables.marks import MarkRow, read_marks
from tests.unit.journal.tables.arrivals import SESSION, add, arrive, author, items, remote

Place = tuple[int, str, int]


@pytest.fixture
def conn() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as conn:
        schema.prepare(conn, ":memory:")
        yield conn


def mark(place: Place, value: object, mark_type: str = "title", key: str = "") -> Operation:
    """Return a mark of another device with this stamp, writer and counter."""
    stamp, writer, counter = place
    payload = encode_mark(Mark(mark_type, key, value))
    return Operation(Dot(writer, counter), Kind.MARK, stamp, 9, (payload,))


def write(conn: sqlite3.Connection, value: object, key: str = "", writer: str = "mewriter") -> None:
    writes.write_mark(conn, author(writer=writer), SESSION.name, Mark("title", key, value))


def found(conn: sqlite3.Connection, mark_type: str | None = None) -> list[MarkRow]:
    return read_marks(conn, SESSION.name, mark_type, None)


def values(conn: sqlite3.Connection, mark_type: str | None = None) -> list[object]:
    return [row.mark.value for row in found(conn, mark_type)]


@pytest.mark.parametrize("seed", range(20))
def test_the_last_mark_in_order_counts(conn: sqlite3.Connection, seed: int) -> None:
    """Whatever the order of arrival: by stamp, then writer, then counter. No text decides."""
    places = [(7, "b", 1), (7, "a", 2), (7, "a", 10), (6, "zz", 9), (7, "b", 2)]
    random.Random(seed).shuffle(places)
    for place in places:
        arrive(conn, mark(place, list(place)))
    (row,) = found(conn)
    assert row == MarkRow(Mark("title", "", [7, "b", 2]), 7, Dot("b", 2))


def test_types_and_keys_are_apart(conn: sqlite3.Connection) -> None:
    """Each type and key has a mark of its own; a type that nobody knows is kept."""
    arrive(
        conn,
        mark((7, "a", 1), 1, "title", "x"),
        mark((7, "a", 2), 2, "title", "y"),
        mark((7, "a", 3), 3, "from.the-future_9", "x"),
        mark((7, "a", 4), 4, "title", "X"),
    )
    assert [(row.mark.type, row.mark.key, row.mark.value) for row in found(conn)] == [
        ("from.the-future_9", "x", 3),
        ("title", "X", 4),
        ("title", "x", 1),
        ("title", "y", 2),
    ]
    assert values(conn, "title") == [4, 1, 2]
    assert [row.mark.value for row in read_marks(conn, SESSION.name, "title", "y")] == [2]
    assert read_marks(conn, SESSION.name, "unknown", None) == []
    assert read_marks(conn, "another session", None, None) == []


@pytest.mark.parametrize(
    "value",
    [None, False, 0, -(1 << 63), (1 << 64) - 1, 1.5, "", "é 会议 \u2028", [], {"a": [{"b": None}]}],
)
def test_a_value_is_read_as_it_was_written(conn: sqlite3.Connection, value: object) -> None:
    """Any JSON value, own or from elsewhere."""
    write(conn, value, "own")
    arrive(conn, mark((7, "a", 1), value, key="theirs"))
    assert values(conn) == [value, value]


def test_a_write_replaces_what_it_has_seen(conn: sqlite3.Connection) -> None:
    """A mark of this journal is later than every mark that had arrived before."""
    arrive(conn, mark((1 << 60, "zzz", 1), "theirs"))
    write(conn, "mine")
    write(conn, "mine again", writer="aaaaaaaa")
    assert values(conn) == ["mine again"]


def test_a_clear_leaves_the_marks(conn: sqlite3.Connection) -> None:
    """An own clear, and one of another device that claims to cover them."""
    write(conn, "mine")
    add(conn, "a")
    writes.clear(conn, author(), SESSION.name)
    covered = Frontier.of([("mewriter", 1), ("mewriter", 2), ("a", 1)])
    arrive(conn, remote(1, encode_clear(covered), kind=Kind.CLEAR))
    arrive(conn, mark((7, "a", 1), "theirs", key="theirs"))
    assert items(conn) == []
    assert values(conn) == ["mine", "theirs"]


def test_marks_are_no_items(conn: sqlite3.Connection) -> None:
    """They do not count, and a pop does not take them."""
    add(conn, "a")
    write(conn, "mine")
    assert items(conn) == ["a"]
    assert conn.execute("SELECT items FROM sessions").fetchone() == (1,)
    popped = writes.pop(conn, author(), SESSION.name)
    assert popped is not None
    assert popped.row[0] == b'"a"'
    assert writes.pop(conn, author(), SESSION.name) is None
    assert values(conn) == ["mine"]


def test_a_mark_that_arrives_twice_counts_once(conn: sqlite3.Connection) -> None:
    """With other content under the same dot it is a conflict, and the first content stays."""
    assert arrive(conn, mark((7, "a", 1), "first")).new == 1
    assert arrive(conn, mark((7, "a", 1), "first")).known == 1
    assert arrive(conn, mark((7, "a", 1), "second")).conflicts == 1
    assert values(conn) == ["first"]


def test_ten_thousand_marks_of_one_key_are_one_row(conn: sqlite3.Connection) -> None:
    """The table has the mark that counts. The operations stay, because the server needs them."""
    tx = SessionTransaction.create(conn, SESSION.name, 1)
    for counter in range(1, 10_001):
        tx.apply(mark((7 + counter % 2, "a", counter), counter))
    tx.finish()
    assert values(conn) == [9999]
    assert conn.execute("SELECT count(*) FROM marks").fetchone() == (1,)
    assert conn.execute("SELECT count(*) FROM ops").fetchone() == (10_000,)


@pytest.mark.parametrize(
    "payload",
    ["{", "[]", '{"type":"t","key":""}', '{"type":"a|b","key":"","value":1}', '"' * 9],
)
def test_a_mark_that_is_not_valid_is_refused(conn: sqlite3.Connection, payload: str) -> None:
    """It counts as damaged, and the rest of its page is applied."""
    good = mark((7, "a", 2), "good")
    bad = Operation(Dot("a", 1), Kind.MARK, 7, 9, (payload,))
    result = arrive(conn, bad, good)
    assert (result.damaged, result.new) == (1, 1)
    assert values(conn) == ["good"]


def test_a_mark_that_is_too_large_is_not_written(conn: sqlite3.Connection) -> None:
    """The writer gets the error, and nothing is stored."""
    with pytest.raises(ValueError, match="at most"):
        write(conn, "x" * (1 << 20))
    assert found(conn) == []
    assert conn.execute("SELECT count(*) FROM ops").fetchone() == (0,)
