"""The inbox: pages of the server become history, whatever order their parts arrive in."""

from __future__ import annotations

import json
import sqlite3

import pytest

from cached_session.history.ops import Dot, ItemRef, Kind, Operation, TurnKey, encode_pop
from cached_session.journal.tables import entry_rows, status_counts, writes
from tests.unit.journal.tables.arrivals import (
    SESSION,
    THEM,
    arrive,
    author,
    items,
    pop,
    remote,
)


def test_a_clear_covers_operations_above_a_gap(conn: sqlite3.Connection) -> None:
    """Every range that a clear names is hidden, before and after it comes; a gap in it is not."""
    arrive(conn, remote(5, '"e"'))
    arrive(conn, remote(6, json.dumps({THEM: [[1, 1], [3, 3], [5, 5]]}), kind=Kind.CLEAR))
    assert items(conn) == []
    arrive(conn, *(remote(n, f'"{n}"') for n in (1, 2, 3, 4)))
    assert items(conn) == ["2", "4"]


def test_a_clear_names_what_an_acknowledged_clear_does_not_cover(conn: sqlite3.Connection) -> None:
    """A clear leaves to an earlier one only the ranges that this one covers."""
    arrive(conn, remote(1, '"a"'))
    earlier = Operation(Dot("other2writer", 1), Kind.CLEAR, 10, 9, (f'{{"{THEM}":[[1,1]]}}',))
    arrive(conn, earlier, remote(3, '"c"'))
    assert items(conn) == ["c"]
    writes.clear(conn, author(), SESSION.session_id)
    assert items(conn) == []
    arrive(conn, remote(2, '"b"'))
    assert items(conn) == ["b"]


def test_equal_stamps_are_ordered_by_writer(conn: sqlite3.Connection) -> None:
    """Operations of writers with equal stamps sort by the writers' ids, in the history and for a
    pop."""
    for writer, counter, text in (("zwriters", 1, '"last"'), ("awriters", 2, '"first"')):
        arrive(conn, Operation(Dot(writer, counter), Kind.APPEND, 9, 9, (text,)))
    assert items(conn) == ["first", "last"]
    assert pop(conn) == "last"
    assert pop(conn) == "first"


def test_two_contents_of_one_dot_are_a_conflict(conn: sqlite3.Connection) -> None:
    """The first content seen stays, the second is counted and changes nothing."""
    arrive(conn, remote(1, '"first"'))
    result = arrive(conn, remote(1, '"second"'))
    assert (result.conflicts, result.new) == (1, 0)
    assert items(conn) == ["first"]
    assert status_counts.counts_of(conn, 1, 0, 0).conflicts == 1


@pytest.mark.parametrize("payload", ["nope", "{", '{"a":1}}'])
def test_an_invalid_operation_is_counted_and_skipped(
    conn: sqlite3.Connection, payload: str
) -> None:
    """An operation with an invalid payload counts as damaged, and the rest of its page is
    applied."""
    for bad in (remote(1, payload), remote(1, payload, kind=Kind.POP)):
        result = arrive(conn, bad, remote(2, '"good"'))
        assert result.damaged == 1
    assert items(conn) == ["good"]


def test_an_invalid_operation_that_a_pop_completes_is_skipped(conn: sqlite3.Connection) -> None:
    """The same holds for an invalid operation whose parts have waited for a pop to complete it."""
    bad = remote(1, "nope", '"b"')
    arrive(conn, bad, parts=slice(1))
    result = arrive(
        conn,
        remote(2, encode_pop(ItemRef(bad.dot, 1, 2)), kind=Kind.POP),
        remote(3, '"good"', stamp=20),
    )
    assert (result.new, result.damaged) == (2, 1)
    assert items(conn) == ["good"]


def test_the_turn_of_an_append_in_several_pages_is_kept(conn: sqlite3.Connection) -> None:
    """The parts that wait for others keep the turn, which their seals protect."""
    head = remote(1, '"head"')
    late = Operation(
        Dot("otherwriter", 1), Kind.APPEND, 11, 9, ('"b"', '"c"'), turn=TurnKey(9, THEM, 1)
    )
    arrive(conn, head, remote(2, '"next turn"', stamp=10))
    assert arrive(conn, late, parts=slice(1)).incomplete == 1
    result = arrive(conn, late, parts=slice(1, None))
    assert (result.new, result.damaged) == (1, 0)
    assert items(conn) == ["head", "b", "c", "next turn"]
    turns = [entry.turn for entry in entry_rows.entries(conn, SESSION.name, None)]
    assert turns == [turns[0]] * 3 + [turns[-1]]
