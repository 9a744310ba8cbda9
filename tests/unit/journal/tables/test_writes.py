"""The state that a write takes over from the one before it, and the tail cache."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from cached_session import CachedSession
from cached_session.errors import JournalError
from cached_session.journal.journal import Journal
from cached_session.journal.sqlite.codec import encode_items
from cached_session.journal.tables import writes
from cached_session.journal.tables.meta import write_meta
from cached_session.journal.tables.writes import Author, LastWrite, Written
from tests.journal_rows import items_of

ME, OTHER = "me", "other"


def author(writer: str = ME) -> Author:
    return Author(writer, 1, 600_000)


def add(conn: sqlite3.Connection, last: LastWrite, word: str, who: Author | None = None) -> Written:
    encoded = encode_items([word])
    return writes.append(conn, who or author(), "s", encoded, private=False, last=last)


def pop(conn: sqlite3.Connection, last: LastWrite) -> Written:
    popped = writes.pop(conn, author(), "s", last)
    assert popped is not None
    return popped.written


def dots(conn: sqlite3.Connection) -> list[tuple[str, int]]:
    return conn.execute("SELECT writer, counter FROM ops ORDER BY seq").fetchall()


def selects(journal: Journal, job: object) -> list[str]:
    """Return the queries that a job makes."""
    asked: list[str] = []

    def traced(conn: sqlite3.Connection) -> Written:
        conn.set_trace_callback(asked.append)
        try:
            return job(conn)  # type: ignore[operator, no-any-return]
        finally:
            conn.set_trace_callback(None)

    journal.write_blocking(traced)
    return [statement for statement in asked if statement.startswith("SELECT")]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    journal = Journal(path, threaded=False)
    yield journal
    journal.close_blocking()


@pytest.fixture
def last(journal: Journal) -> LastWrite:
    """Return the state that one append leaves."""
    last = LastWrite()
    last.keep(journal.write_blocking(lambda conn: add(conn, last, "a")))
    return last


def test_an_append_after_an_append_makes_no_query(journal: Journal, last: LastWrite) -> None:
    """Without a commit in between, everything that it needs is in memory."""
    assert selects(journal, lambda conn: add(conn, last, "b")) == []
    assert journal.read_blocking(dots) == [(ME, 1), (ME, 2)]


def test_an_append_after_a_pop_makes_no_query(journal: Journal, last: LastWrite) -> None:
    """A pop leaves the state that the next append needs."""
    last.keep(journal.write_blocking(lambda conn: pop(conn, last)))
    assert selects(journal, lambda conn: add(conn, last, "b")) == []
    assert journal.read_blocking(dots) == [(ME, 1), (ME, 2), (ME, 3)]


def test_a_failed_write_leaves_no_state(journal: Journal, last: LastWrite) -> None:
    """Also if it failed before it changed a row, no counter is skipped."""

    def fail(conn: sqlite3.Connection) -> None:
        conn.set_authorizer(lambda action, *_: int(action == sqlite3.SQLITE_INSERT))
        try:
            add(conn, last, "lost")
        finally:
            conn.set_authorizer(lambda *_: sqlite3.SQLITE_OK)

    with pytest.raises(JournalError, match="not authorized"):
        journal.write_blocking(fail)
    journal.write_blocking(lambda conn: add(conn, last, "b"))
    assert journal.read_blocking(dots) == [(ME, 1), (ME, 2)]


def test_the_state_of_a_rolled_back_write_is_not_used(journal: Journal, last: LastWrite) -> None:
    """A write that was rolled back after it ended has no effect."""

    def fail(conn: sqlite3.Connection) -> None:
        add(conn, last, "lost")
        raise OSError("the disk has had enough")

    with pytest.raises(JournalError):
        journal.write_blocking(fail)
    journal.write_blocking(lambda conn: add(conn, last, "b"))
    assert journal.read_blocking(dots) == [(ME, 1), (ME, 2)]


def test_a_write_of_another_process_is_seen(journal: Journal, last: LastWrite, path: Path) -> None:
    """It ends the run: a later append sorts after it."""
    other = Journal(path, threaded=False)
    other.write_blocking(lambda conn: add(conn, LastWrite(), "b", author(OTHER)))
    other.close_blocking()
    assert selects(journal, lambda conn: add(conn, last, "c")) != []
    assert journal.read_blocking(dots) == [(ME, 1), (OTHER, 1), (ME, 2)]
    items = journal.read_blocking(lambda conn: items_of(conn, "s"))
    assert [json.loads(payload) for *_, payload in items] == ["a", "b", "c"]


def test_another_change_of_this_process_is_seen(journal: Journal, last: LastWrite) -> None:
    """Any other write makes the next append query the tables."""
    journal.write_blocking(lambda conn: write_meta(conn, fact="x"))
    assert selects(journal, lambda conn: add(conn, last, "b")) != []


def test_a_retired_writer_cannot_write(journal: Journal, last: LastWrite) -> None:
    """A writer that is new to a kept state is checked, as in any transaction."""
    journal.write_blocking(lambda conn: write_meta(conn, **{writes.RETIRED + OTHER: ""}))
    last.keep(journal.write_blocking(lambda conn: add(conn, last, "b")))
    with pytest.raises(JournalError, match="replaced in the middle"):
        journal.write_blocking(lambda conn: add(conn, last, "c", author(OTHER)))
    assert journal.read_blocking(dots) == [(ME, 1), (ME, 2)]


async def test_a_pop_keeps_the_tail_cache(path: Path) -> None:
    """The tail continues without the item and equals the journal."""
    async with CachedSession("s", journal=path) as session:
        await session.add_items([{"n": n} for n in range(5)])
        await session.get_items(3)
        await session.pop_item()
        reader = session._engine.journal._connections.reader
        assert reader is not None
        asked: list[str] = []
        reader.set_trace_callback(asked.append)
        assert await session.get_items(2) == [{"n": 2}, {"n": 3}]
        assert asked == []
        reader.set_trace_callback(None)
        assert await session.get_items(3) == [{"n": 1}, {"n": 2}, {"n": 3}]
        assert await session.get_items() == [{"n": n} for n in range(4)]


async def test_a_late_part_of_a_turn_does_not_end_the_tail(path: Path) -> None:
    """The output joins the turn of its call, before the next turn, also in the cached tail."""
    call = {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "1", "output": "x"}
    first, second = ({"role": "user", "content": text} for text in "ab")
    async with CachedSession("s", journal=path) as session:
        await session.add_items([first, call])
        await session.add_items([second])
        assert await session.get_items(3) == [first, call, second]
        await session.add_items([output])
        assert await session.get_items(3) == [call, output, second]
        assert await session.get_items(4) == [first, call, output, second]


async def test_a_tail_keeps_a_claimed_item_that_a_pop_has_skipped(path: Path) -> None:
    """The item is claimed, stays after the popped one, and is still read."""
    async with CachedSession("s", journal=path) as session:
        await session.add_items([{"n": 1}])
        await session.add_items([{"n": 2}])
        await session.get_items(5)
        (latest,) = await session.entries(1)
        claim = (latest.writer, latest.counter, latest.index, "x", 0, 1)
        await session._engine.journal.write(
            lambda conn: (
                conn.execute(
                    "INSERT INTO claims SELECT id, ?, ?, ?, ?, ?, ? FROM sessions", claim
                ).rowcount
            )
        )
        assert await session.get_items(5) == [{"n": 1}, {"n": 2}]
        assert await session.pop_item() == {"n": 1}
        assert await session.get_items(5) == [{"n": 2}]
