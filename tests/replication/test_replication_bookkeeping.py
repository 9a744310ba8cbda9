"""The server has said yes, and the journal cannot write it down: a yes stays a yes."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest

from cached_session import CachedSession, JournalFull, PopUnconfirmed
from cached_session.devserver import DevServer
from cached_session.journal.sqlite.tracked_connection import TrackedConnection
from tests.replication.devices import (
    BATCH,
    PATIENCE,
    QUICK,
    Devices,
    items_on,
    kinds_on,
    one_history,
    said,
    texts,
    until,
)

ACK = "UPDATE ops SET state = 2"
CLAIM = "INSERT INTO ops"


class Book:
    """Fails the transactions that have a statement beginning with `what`, in one way, while `how`
    is set."""

    def __init__(self) -> None:
        self.how: str | None = None
        self.what = ACK
        self.failures = 0

    def fail(self, message: str) -> None:
        self.failures += 1
        raise sqlite3.OperationalError(message)


@pytest.fixture
def book(monkeypatch: pytest.MonkeyPatch) -> Book:
    """Every connection that is opened writes by this book."""
    book = Book()

    class Failing(TrackedConnection):
        hit = False

        def passing(self, sql: str) -> None:
            if book.how and sql.startswith(book.what):
                if book.how == "disk full":
                    book.fail("database or disk is full")
                if book.how == "I/O error":
                    book.fail("disk I/O error")
                self.hit = True

        def executemany(self, sql: str, *more: Any) -> sqlite3.Cursor:
            self.passing(sql)
            return super().executemany(sql, *more)

        def execute(self, sql: str, *more: Any) -> sqlite3.Cursor:
            if sql.startswith("BEGIN"):
                self.hit = False
            self.passing(sql)
            if sql == "COMMIT" and self.hit and book.how == "refused at the end":
                book.fail("database or disk is full")
            found = super().execute(sql, *more)
            if sql == "COMMIT" and self.hit and book.how == "done, and said to have failed":
                book.fail("disk I/O error")
            return found

    connect: Any = sqlite3.connect
    monkeypatch.setattr(
        sqlite3, "connect", lambda *args, **more: connect(*args, **{**more, "factory": Failing})
    )
    return book


HOW = ["disk full", "I/O error", "refused at the end", "done, and said to have failed"]


@pytest.mark.promise(number=3)
@pytest.mark.parametrize("how", HOW)
async def test_what_the_server_took_is_acknowledged_later_and_stands_there_once(
    device: Devices, server: DevServer, book: Book, how: str
) -> None:
    """An append, a pop and a clear that the server took while the disk was full stay queued, are
    never parked, take nothing from the local history, and are acknowledged once there is room:
    each once on the server and on another device."""
    a = await device("a", options=QUICK)
    await a.add_items([said("old")])
    await a.sync(timeout=PATIENCE)
    await a.clear_session()
    await a.add_items([said("one"), said("two"), said("three")])
    book.how = how
    assert await a.pop_item() == said("three")
    await a.add_items([said("four")])
    await until(lambda: book.failures >= (1 if how == HOW[-1] else 2))
    await until(lambda: "four" in items_on(server))
    status = a.status()
    assert status.parked == 0
    if how != HOW[-1]:
        assert status.pending > 0
    assert texts(await a.get_items()) == ["one", "two", "four"]
    book.how = None
    await until(lambda: a.status().pending == 0)
    await a.sync(timeout=PATIENCE)
    assert a.status().parked == 0
    assert items_on(server) == ["one", "two", "four"]
    assert kinds_on(server).count("append") == 3
    assert await one_history(a, device.new("late")) == ["one", "two", "four"]


async def test_a_journal_that_is_locked_while_the_server_says_yes(
    device: Devices, server: DevServer
) -> None:
    """Another program holds the journal's lock while a store is under way, and for longer than a
    write waits: the yes is asked for again when the lock is free, and nothing is there twice."""
    a = await device("a", options=replace(QUICK, busy_timeout=0.1))
    fault = server.faults.latency(0.4, after_commit=True, route=BATCH, count=1)
    await a.add_items([said("one")])
    await until(lambda: fault.fired)
    with closing(sqlite3.connect(a._engine.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        await until(lambda: items_on(server) == ["one"])
        replicator = a._engine.loop_host.replicator()
        assert replicator is not None
        # Of the push, and not of a pull that was refused before it.
        await until(lambda: ("push", "talk") in replicator.context.local_errors._found)
        assert "locked" in str(a.status().last_error)
        assert (a.status().pending, a.status().parked) == (1, 0)
        assert texts(await a.get_items()) == ["one"]
        other.execute("ROLLBACK")
    await until(lambda: a.status().pending == 0)
    assert server.requests.count(BATCH) >= 2
    assert await one_history(a, device.new("late")) == ["one"]


async def test_why_nothing_is_acknowledged_is_told(
    device: Devices, server: DevServer, book: Book
) -> None:
    """While the journal cannot note what the server took, the status of the queue that stands
    still has the reason; it goes when the queue does."""
    a = await device("a", options=QUICK)
    book.how = "disk full"
    await a.add_items([said("one")])
    await until(lambda: "disk is full" in str(a.status().last_error))
    book.how = None
    await until(lambda: a.status().pending == 0)
    await until(lambda: a.status().last_error is None)


async def test_why_nothing_is_pulled_is_told(
    device: Devices, server: DevServer, book: Book
) -> None:
    """While the journal cannot note what was pulled, the status says why, though nothing waits to
    be sent; no longer once it can, or once nobody has the session open."""
    a = await device("a", options=QUICK)
    await a.add_items([said("one")])
    await a.sync(timeout=PATIENCE)
    book.what, book.how = "UPDATE sessions SET hydrated", "disk full"
    await until(lambda: "disk is full" in str(a.status().last_error))
    assert a.status().pending == 0
    book.how = None
    await until(lambda: a.status().last_error is None)


async def test_what_the_background_stumbles_over_is_looked_into(
    device: Devices, server: DevServer
) -> None:
    """A spoiled cell that no call of the session reads: the pull that stumbles over it has the
    journal mended, and the status tells of that."""
    a = await device("a", options=QUICK)
    await a.add_items([said("one")])
    await a.sync(timeout=PATIENCE)
    with closing(sqlite3.connect(a._engine.path, isolation_level=None)) as other:
        other.execute("UPDATE sessions SET ground = 'nonsense'")
    await until(lambda: "sessions.ground has an invalid value" in str(a.status().salvaged))
    await until(lambda: a.status().last_error is None)
    assert texts(await a.get_items()) == ["one"]


@pytest.mark.parametrize("how", ["disk full", "refused at the end"])
async def test_an_item_that_was_won_and_not_noted_is_given_to_nobody_else(
    device: Devices, server: DevServer, book: Book, how: str
) -> None:
    """A confirmed pop whose item the server has deleted, and whose removal cannot be written down:
    the call says that it does not know, and the item is given to nobody else; it is popped once
    there is room."""
    a = await device("a", options=QUICK, pop="confirmed")
    b = await device("b", options=QUICK, pop="confirmed")
    await a.add_items([said("one"), said("two")])
    await a.sync(timeout=PATIENCE)
    await b.sync(timeout=PATIENCE)
    book.what, book.how = CLAIM, how
    with pytest.raises(PopUnconfirmed, match="disk is full") as caught:
        await a.pop_item()
    assert isinstance(caught.value.__cause__, JournalFull)
    assert items_on(server) == ["one"]
    book.how = None
    given: list[CachedSession] = [a, b]
    await a.sync(timeout=PATIENCE)
    await b.sync(timeout=PATIENCE)
    got = [item for session in given if (item := await session.pop_item()) is not None]
    assert got == [said("one")]
    assert await one_history(a, b, device.new("late")) == []
