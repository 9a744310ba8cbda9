"""Storing memories and verifying that the server keeps them."""

from __future__ import annotations

import pytest

from cached_session.remote.errors import RemoteError
from cached_session.remote.wire import EncodedMemory
from cached_session.replication.encode_memories import encode
from cached_session.replication.store import store
from tests.unit.replication.fakes import (
    CONFLICT,
    RATE_LIMITED,
    SESSION,
    UNREACHABLE,
    FakeServer,
    add,
    context_of,
    open_journal,
)


async def encoded(count: int) -> list[EncodedMemory]:
    """Return real memories, of one operation each."""
    journal = open_journal()
    add(journal, *[f"item {number}" for number in range(count)])
    operations = await journal.outbox.load(range(1, count + 1))
    context = context_of(FakeServer(), journal)
    return [one for op in await encode(context, SESSION, operations) for one in op.memories]


async def test_memories_are_stored_in_requests_of_legal_size() -> None:
    """All arrive, and their ids are remembered for the event stream."""
    server, memories = FakeServer(), await encoded(7)
    context = context_of(server, max_batch_memories=3)
    assert await store(context, SESSION, memories) == set()
    assert list(server.rows) == [one.id for one in memories]
    assert server.requests == ["store"] * 3
    assert all(one.id in context.push_state.sent for one in memories)


async def test_memories_that_the_server_does_not_keep_are_reported() -> None:
    """Although it took the request."""
    server, memories = FakeServer(), await encoded(3)
    server.loses = {memories[1].id}
    assert await store(context_of(server), SESSION, memories) == {memories[1].id}


async def test_a_server_that_names_no_ids_is_verified() -> None:
    """By one listing, whatever the number of memories."""
    server, memories = FakeServer(), await encoded(9)
    server.says_nothing = True
    assert await store(context_of(server), SESSION, memories) == set()
    assert server.requests == ["store", "list"]


async def test_a_lost_answer_followed_by_a_conflict_is_a_success() -> None:
    """The server holds the memory already, unchanged."""
    server, (memory,) = FakeServer(), await encoded(1)
    await store(context_of(server), SESSION, [memory])
    server.failures["store"] = [CONFLICT]
    assert await store(context_of(server), SESSION, [memory]) == set()


async def test_a_store_that_was_broken_off_goes_on() -> None:
    """Memories that were acknowledged are not sent again. The last of them is verified."""
    server, memories = FakeServer(), await encoded(8)
    context = context_of(server, max_batch_memories=4)
    server.failures["store"] = [None, RATE_LIMITED]
    with pytest.raises(RemoteError):
        await store(context, SESSION, memories)
    assert len(server.rows) == 4
    server.requests.clear()
    assert await store(context, SESSION, memories) == set()
    assert server.requests == ["store", "store", "fetch"], "half as many in each request"
    assert len(server.rows) == 8


async def test_a_server_that_has_lost_the_first_part_gets_it_again() -> None:
    """Once, and it is believed then, whatever its reads show."""
    server, memories = FakeServer(), await encoded(4)
    context = context_of(server, max_batch_memories=2)
    server.failures["store"] = [None, UNREACHABLE]
    with pytest.raises(RemoteError):
        await store(context, SESSION, memories)
    server.rows.clear()
    server.requests.clear()
    assert await store(context, SESSION, memories) == set()
    assert server.requests == ["store", "fetch", "store", "store"]
    assert set(server.rows) == {one.id for one in memories}
