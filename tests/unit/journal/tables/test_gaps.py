"""The gaps table: its list follows the frontier, and every search has its time."""

from __future__ import annotations

import json
import sqlite3

from cached_session.history.ops import Dot, ItemRef, Kind, encode_pop
from cached_session.history.session_ref import SessionRef
from cached_session.journal.tables import inbox, status_counts
from cached_session.journal.tables.gaps import (
    GAPS_PER_WRITER,
    Search,
    due_gaps,
    record_searches,
    refresh_gaps,
)
from tests.unit.journal.tables.arrivals import SESSION, THEM, arrive, items, remote

UNKNOWN = SessionRef.of("unknown")


def due(conn: sqlite3.Connection, now_ms: int = 0, limit: int = 99, **how: bool) -> list[int]:
    """Return the counters of the gaps that are due."""
    return [gap.dot.counter for gap in due_gaps(conn, SESSION, now_ms, limit, **how)]


def test_a_gap_is_listed_until_it_is_filled(conn: sqlite3.Connection) -> None:
    """Missing counters below a known one are gaps; each goes when its operation arrives."""
    arrive(conn, remote(3, '"c"'), remote(5, '"e"'))
    assert refresh_gaps(conn, SESSION, 100) == 3
    assert sorted(due(conn, 100)) == [1, 2, 4]
    arrive(conn, remote(2, '"b"'))
    assert sorted(due(conn, 100)) == [1, 4]
    assert refresh_gaps(conn, SESSION, 200) == 2
    arrive(conn, remote(1, '"a"'), remote(4, '"d"'))
    assert due(conn, 10**9) == []
    assert refresh_gaps(conn, SESSION, 300) == 0
    assert items(conn) == ["a", "b", "c", "d", "e"]
    assert refresh_gaps(conn, UNKNOWN, 0) == 0
    assert due_gaps(conn, UNKNOWN, 0, 9) == []


def test_a_gap_is_searched_for_when_it_is_due(conn: sqlite3.Connection) -> None:
    """A search that finds nothing is counted and delays the next one; the longest overdue gap comes
    first, and a caller can ask for all of them."""
    arrive(conn, remote(4, '"d"'))
    refresh_gaps(conn, SESSION, 100)
    assert due(conn, 99) == []
    assert sorted(due(conn, 100)) == [1, 2, 3]
    found = [(1, 900, False), (2, 500, False), (3, 700, True)]
    record_searches(
        conn,
        SESSION,
        [Search(Dot(THEM, counter), next_ms, explained) for counter, next_ms, explained in found],
    )
    record_searches(conn, UNKNOWN, [Search(Dot(THEM, 1), 0, False)])
    assert due(conn, 600) == [2]
    assert due(conn, 1000, 2) == [2, 3]
    assert due(conn, 0, everything=True) == [2, 3, 1]
    assert {gap.tries for gap in due_gaps(conn, SESSION, 1000, 9)} == {1}
    facts = status_counts.counts_of(conn, 1, 100, 0)
    assert (facts.absent, facts.explained) == (2, 1)
    assert status_counts.counts_of(conn, 1, 150, 60).absent == 0


def test_an_incomplete_operation_is_a_gap_with_its_parts(conn: sqlite3.Connection) -> None:
    """The missing parts of an operation are searched for, except those of popped items."""
    op = remote(1, '"a"', '"b"', '"c"')
    assert arrive(conn, op, parts=slice(1)).incomplete == 1
    assert items(conn) == []
    assert refresh_gaps(conn, SESSION, 0) == 1
    arrive(conn, remote(2, encode_pop(ItemRef(op.dot, 2, 3)), kind=Kind.POP))
    (gap,) = due_gaps(conn, SESSION, 0, 9)
    assert (gap.dot, gap.count, gap.popped) == (op.dot, 3, {2})
    assert gap.have == {(0, 0)}
    arrive(conn, op, parts=slice(1, 2))
    assert items(conn) == ["a", "b"]
    assert refresh_gaps(conn, SESSION, 0) == 0
    assert conn.execute("SELECT count(*) FROM parts").fetchone() == (0,)


def test_a_pop_shows_the_size_of_its_batch(conn: sqlite3.Connection) -> None:
    """The pop of an item names the size of an append that is missing, and needs no search."""
    pop_one = remote(2, encode_pop(ItemRef(Dot(THEM, 1), 0, 2)), kind=Kind.POP)
    arrive(conn, pop_one)
    assert refresh_gaps(conn, SESSION, 0) == 1
    (gap,) = due_gaps(conn, SESSION, 0, 9)
    assert (gap.count, gap.popped, gap.have) == (2, {0}, set())
    arrive(conn, remote(3, encode_pop(ItemRef(Dot(THEM, 1), 1, 2)), kind=Kind.POP))
    assert refresh_gaps(conn, SESSION, 0) == 0


def test_a_cleared_operation_is_not_a_gap(conn: sqlite3.Connection) -> None:
    """An operation that a clear covers is not searched for, its parts are deleted, and if it
    arrives nevertheless it shows nothing."""
    op = remote(1, '"a"', '"b"')
    arrive(conn, op, parts=slice(1))
    arrive(conn, remote(4, json.dumps({THEM: [[1, 3]]}), kind=Kind.CLEAR))
    assert refresh_gaps(conn, SESSION, 0) == 0
    assert due(conn) == []
    assert conn.execute("SELECT count(*) FROM parts").fetchone() == (0,)
    arrive(conn, op, remote(2, '"late"'))
    assert items(conn) == []


def test_an_explained_gap_waits_for_its_operation(conn: sqlite3.Connection) -> None:
    """A gap with a placeholder is explained, not absent, also if the placeholder arrives first; the
    operation is applied if its writer sends it after all."""
    inbox.apply_page(conn, SESSION, [], [Dot(THEM, 2)], 50)
    assert refresh_gaps(conn, SESSION, 55) == 0
    assert status_counts.counts_of(conn, 1, 10**6, 0).explained == 1
    arrive(conn, remote(3, '"c"'))
    assert refresh_gaps(conn, SESSION, 60) == 2
    facts = status_counts.counts_of(conn, 1, 10**6, 0)
    assert (facts.absent, facts.explained) == (1, 1)
    arrive(conn, remote(1, '"a"'), remote(2, '"b"'))
    assert items(conn) == ["a", "b", "c"]
    assert due(conn, 10**9) == []
    inbox.apply_page(conn, SESSION, [], [Dot(THEM, 2)], 70)
    assert due(conn, 10**9) == []


def test_a_hostile_counter_makes_a_bounded_list(conn: sqlite3.Connection) -> None:
    """A forged counter adds no more rows than the limit for one writer."""
    arrive(conn, remote((1 << 53) - 1, '"far"'))
    assert refresh_gaps(conn, SESSION, 0) == GAPS_PER_WRITER
    assert len(due(conn, limit=1000)) == GAPS_PER_WRITER
