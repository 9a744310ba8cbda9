"""Pushing one session."""

from __future__ import annotations

import logging

import pytest

from cached_session.history.ops import Dot
from cached_session.journal.journal import Journal
from cached_session.journal.tables import writes
from cached_session.remote.errors import RemoteError, Scope, Verdict
from cached_session.replication import push as push_module
from cached_session.replication.push import push
from tests.unit.replication.fakes import (
    REFUSED,
    SESSION,
    UNREACHABLE,
    WRITER,
    FakeServer,
    add,
    context_of,
    open_journal,
)

TALK = SESSION.session_id


def texts(server: FakeServer) -> list[str]:
    """Return the items on the server, in the order in which they were stored."""
    rows = [row["metadata"] for row in server.rows.values()]
    return [row["cs_x"] for row in rows if row["cs_op"] == "append"]


def pop(journal: Journal) -> None:
    journal.write_blocking(writes.pop, writes.Author(WRITER, 2000, 1000), TALK)


@pytest.mark.parametrize("at_a_time", [1, 3, 1000])
async def test_the_outbox_is_sent_in_order(monkeypatch: pytest.MonkeyPatch, at_a_time: int) -> None:
    """However it is divided into reads and requests."""
    monkeypatch.setattr(push_module, "READ_OPERATIONS", at_a_time)
    server, journal = FakeServer(), open_journal()
    add(journal, *[str(number) for number in range(10)])
    result = await push(context_of(server, journal, max_batch_memories=4), SESSION)
    assert texts(server) == [f'"{number}"' for number in range(10)]
    assert (result.acked, result.parked, result.unkept) == (10, 0, 0)
    assert not await journal.outbox.has_unsent(SESSION)
    # A group waits for the operations that are read next, so that requests are full.
    assert server.requests == ["guard", "store", "store", "store"]


async def test_nothing_to_send_asks_nothing() -> None:
    """Neither for the policy nor for anything else."""
    server = FakeServer()
    result = await push(context_of(server), SESSION)
    assert result.acked == 0
    assert server.requests == []


async def test_a_push_stops_at_a_seq() -> None:
    """What is written later is left to the next push."""
    server, journal = FakeServer(), open_journal()
    add(journal, "a", "b", "c")
    assert (await push(context_of(server, journal), SESSION, upto=2)).acked == 2
    assert texts(server) == ['"a"', '"b"']
    assert await journal.outbox.has_unsent(SESSION)


async def test_what_was_acknowledged_before_a_failure_stays_acknowledged() -> None:
    """The next push sends the rest."""
    server, journal = FakeServer(), open_journal()
    add(journal, "a", "b", "c")
    server.failures["store"] = [None, UNREACHABLE]
    context = context_of(server, journal, max_batch_memories=1)
    with pytest.raises(RemoteError):
        await push(context, SESSION)
    assert (await push(context, SESSION)).acked == 2
    assert texts(server) == ['"a"', '"b"', '"c"']


async def test_a_refused_operation_is_parked_and_the_others_are_sent(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A placeholder on the server explains its gap, and an error is logged."""
    server, journal = FakeServer(), open_journal()
    add(journal, "a", "bad", "c", "d")
    server.refuses = {"bad"}
    with caplog.at_level(logging.ERROR):
        result = await push(context_of(server, journal), SESSION)
    assert texts(server) == ['"a"', '"c"', '"d"']
    assert (result.acked, result.parked) == (3, 1)
    (parked,) = await journal.parked.all(TALK)
    assert (parked.dot, parked.error, parked.items) == (Dot(WRITER, 2), "bad item", ["bad"])
    assert "operation 2" in caplog.text
    assert [row["metadata"]["cs_c"] for row in server.rows.values()] == [1, 2, 3, 4]


async def test_a_server_that_refuses_everything_parks_nothing() -> None:
    """A person has to act; the operation stays in the outbox."""
    server, journal = FakeServer(), open_journal()
    add(journal, "a")
    server.failures["store"] = [REFUSED, REFUSED]
    with pytest.raises(RemoteError) as raised:
        await push(context_of(server, journal), SESSION)
    assert raised.value.verdict is Verdict.DENIED
    assert await journal.parked.all(TALK) == []
    assert await journal.outbox.has_unsent(SESSION)


async def test_an_operation_that_is_not_kept_is_sent_again() -> None:
    """The push fails after the others were acknowledged."""
    server, journal = FakeServer(), open_journal()
    add(journal, "a", "b")
    context = context_of(server, journal)
    (_, second) = await push_ids(journal)
    server.loses = {second}
    with pytest.raises(RemoteError, match="did not keep 1 operation") as raised:
        await push(context, SESSION)
    assert raised.value.scope is Scope.SESSION
    server.loses = set()
    assert (await push(context, SESSION)).acked == 1
    assert texts(server) == ['"a"', '"b"']


async def push_ids(journal: Journal) -> list[str]:
    """Return the ids that a push gives to the memories of a copy of the journal."""
    server, copy = FakeServer(), open_journal()
    add(copy, "a", "b")
    await push(context_of(server, copy), SESSION)
    return list(server.rows)


async def test_removed_items_are_deleted_after_their_removal_was_acknowledged() -> None:
    """In the same push. Only the pop stays on the server."""
    server, journal = FakeServer(), open_journal()
    context = context_of(server, journal)
    add(journal, "a")
    await push(context, SESSION)
    pop(journal)
    result = await push(context, SESSION)
    assert (result.acked, result.forgotten) == (1, 1)
    assert [row["metadata"]["cs_op"] for row in server.rows.values()] == ["pop"]
    assert await journal.outbox.forgets_due(SESSION, 9) == []


async def test_a_failed_deletion_is_repeated() -> None:
    """It stays in the queue until the server has answered."""
    server, journal = FakeServer(), open_journal()
    context = context_of(server, journal)
    add(journal, "a")
    await push(context, SESSION)
    pop(journal)
    server.failures["forget"] = [UNREACHABLE]
    with pytest.raises(RemoteError):
        await push(context, SESSION)
    assert (await push(context, SESSION)).forgotten == 1
