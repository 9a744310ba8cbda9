"""The server accepts operations while the journal cannot store the acknowledgement."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest

from cached_session import CachedSession, JournalFull, PopUnconfirmed
from cached_session.devserver import DevServer
from cached_session.journal.sqlite.tracked_connection import TrackedConnection
from tests.journal_rows import spoil
from tests.replication.devices import (
    BATCH,
    PATIENCE,
    QUICK,
    Devices,
    assert_one_history,
    items_on_server,
    kinds_on_server,
    text_message,
    texts,
    wait_until,
)

ACK = "DELETE FROM waiting"
CLAIM = "INSERT INTO ops"


class JournalFault:
    """Fails the transactions with a statement that begins with `what`, in one way, while `how` is
    set."""

    def __init__(self) -> None:
        self.how: str | None = None
        self.what = ACK
        self.failures = 0

    def fail(self, message: str) -> None:
        self.failures += 1
        raise sqlite3.OperationalError(message)


@pytest.fixture
def journal_fault(monkeypatch: pytest.MonkeyPatch) -> JournalFault:
    """Let every new connection pass its statements through the fault."""
    journal_fault = JournalFault()

    class Failing(TrackedConnection):
        hit = False

        def passing(self, sql: str) -> None:
            if journal_fault.how and sql.startswith(journal_fault.what):
                if journal_fault.how == "disk full":
                    journal_fault.fail("database or disk is full")
                if journal_fault.how == "I/O error":
                    journal_fault.fail("disk I/O error")
                self.hit = True

        def executemany(self, sql: str, *more: Any) -> sqlite3.Cursor:
            self.passing(sql)
            return super().executemany(sql, *more)

        def execute(self, sql: str, *more: Any) -> sqlite3.Cursor:
            if sql.startswith("BEGIN"):
                self.hit = False
            self.passing(sql)
            if sql == "COMMIT" and self.hit and journal_fault.how == "refused at the end":
                journal_fault.fail("database or disk is full")
            found = super().execute(sql, *more)
            if (
                sql == "COMMIT"
                and self.hit
                and journal_fault.how == "done, and said to have failed"
            ):
                journal_fault.fail("disk I/O error")
            return found

    connect: Any = sqlite3.connect
    monkeypatch.setattr(
        sqlite3, "connect", lambda *args, **more: connect(*args, **{**more, "factory": Failing})
    )
    return journal_fault


HOW = ["disk full", "I/O error", "refused at the end", "done, and said to have failed"]


@pytest.mark.promise(number=3)
@pytest.mark.parametrize("how", HOW)
async def test_what_the_server_accepted_is_acknowledged_later_and_stored_once(
    device: Devices, server: DevServer, journal_fault: JournalFault, how: str
) -> None:
    """An append, a pop and a clear that the server accepted while the disk was full stay queued,
    are never parked, change nothing in the local history, and are acknowledged once there is space.
    Each is stored once on the server and on another device."""
    a = await device("a", options=QUICK)
    await a.add_items([text_message("old")])
    await a.sync(timeout=PATIENCE)
    await a.clear_session()
    await a.add_items([text_message("one"), text_message("two"), text_message("three")])
    journal_fault.how = how
    assert await a.pop_item() == text_message("three")
    await a.add_items([text_message("four")])
    await wait_until(lambda: journal_fault.failures >= (1 if how == HOW[-1] else 2))
    await wait_until(lambda: "four" in items_on_server(server))
    status = a.status()
    assert status.parked == 0
    if how != HOW[-1]:
        assert status.pending > 0
    assert texts(await a.get_items()) == ["one", "two", "four"]
    journal_fault.how = None
    await wait_until(lambda: a.status().pending == 0)
    await a.sync(timeout=PATIENCE)
    assert a.status().parked == 0
    assert items_on_server(server) == ["one", "two", "four"]
    assert kinds_on_server(server).count("append") == 3
    assert await assert_one_history(a, device.new("late")) == ["one", "two", "four"]


async def test_a_journal_locked_during_an_answer_stores_nothing_twice(
    device: Devices, server: DevServer
) -> None:
    """Another program holds the journal's lock during a store request, and for longer than a write
    waits. The acknowledgement is requested again when the lock is free, and nothing is stored
    twice."""
    a = await device("a", options=replace(QUICK, busy_timeout=0.1))
    fault = server.faults.latency(0.4, after_commit=True, route=BATCH, count=1)
    await a.add_items([text_message("one")])
    await wait_until(lambda: fault.fired)
    with closing(sqlite3.connect(a._engine.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        await wait_until(lambda: items_on_server(server) == ["one"])
        replicator = a._engine.loop_host.replicator()
        assert replicator is not None
        # An error of the push, and not of a pull that failed before it.
        await wait_until(lambda: ("push", "talk") in replicator.context.local_errors._found)
        assert "locked" in str(a.status().last_error)
        assert (a.status().pending, a.status().parked) == (1, 0)
        assert texts(await a.get_items()) == ["one"]
        other.execute("ROLLBACK")
    await wait_until(lambda: a.status().pending == 0)
    assert server.requests.count(BATCH) >= 2
    assert await assert_one_history(a, device.new("late")) == ["one"]


async def test_the_status_names_why_nothing_is_acknowledged(
    device: Devices, server: DevServer, journal_fault: JournalFault
) -> None:
    """While the journal cannot store the acknowledgement, the status of the queue has the reason,
    until the queue moves again."""
    a = await device("a", options=QUICK)
    journal_fault.how = "disk full"
    await a.add_items([text_message("one")])
    await wait_until(lambda: "disk is full" in str(a.status().last_error))
    journal_fault.how = None
    await wait_until(lambda: a.status().pending == 0)
    await wait_until(lambda: a.status().last_error is None)


async def test_the_status_names_why_nothing_is_pulled(
    device: Devices, server: DevServer, journal_fault: JournalFault
) -> None:
    """While the journal cannot store what was pulled, the status has the reason, although nothing
    waits to be sent. The reason goes once a pull succeeds or no session is open."""
    a = await device("a", options=QUICK)
    await a.add_items([text_message("one")])
    await a.sync(timeout=PATIENCE)
    journal_fault.what, journal_fault.how = "UPDATE sessions SET hydrated", "disk full"
    await wait_until(lambda: "disk is full" in str(a.status().last_error))
    assert a.status().pending == 0
    journal_fault.how = None
    await wait_until(lambda: a.status().last_error is None)


async def test_damage_that_a_background_pull_detects_is_recovered(
    device: Devices, server: DevServer
) -> None:
    """A pull that reads a damaged cell, which no call of the session reads, starts a recovery of
    the journal, and the status reports it."""
    a = await device("a", options=QUICK)
    await a.add_items([text_message("one")])
    await a.sync(timeout=PATIENCE)
    with closing(sqlite3.connect(a._engine.path, isolation_level=None)) as other:
        spoil(other, "UPDATE sessions SET ground = 'nonsense'")
    await wait_until(lambda: "CHECK constraint failed in sessions" in str(a.status().salvaged))
    await wait_until(lambda: a.status().last_error is None)
    assert texts(await a.get_items()) == ["one"]


@pytest.mark.parametrize("how", ["disk full", "refused at the end"])
async def test_an_item_whose_removal_was_not_recorded_is_given_to_no_other(
    device: Devices, server: DevServer, journal_fault: JournalFault, how: str
) -> None:
    """The server deletes the item of a confirmed pop, and the journal cannot record the removal.
    The call raises that the result is unknown, the item is given to no other, and it is popped once
    there is space."""
    a = await device("a", options=QUICK, pop="confirmed")
    b = await device("b", options=QUICK, pop="confirmed")
    await a.add_items([text_message("one"), text_message("two")])
    await a.sync(timeout=PATIENCE)
    await b.sync(timeout=PATIENCE)
    journal_fault.what, journal_fault.how = CLAIM, how
    with pytest.raises(PopUnconfirmed, match="disk is full") as caught:
        await a.pop_item()
    assert isinstance(caught.value.__cause__, JournalFull)
    assert items_on_server(server) == ["one"]
    journal_fault.how = None
    given: list[CachedSession] = [a, b]
    await a.sync(timeout=PATIENCE)
    await b.sync(timeout=PATIENCE)
    got = [item for session in given if (item := await session.pop_item()) is not None]
    assert got == [text_message("one")]
    assert await assert_one_history(a, b, device.new("late")) == []
