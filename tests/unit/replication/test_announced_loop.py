"""Fetching the memories that events have named."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import pytest

from cached_session.history.ops import Dot
from cached_session.remote.errors import RemoteError
from cached_session.remote.ids import memory_id
from cached_session.replication.announced_loop import AnnouncedFetcher, fetch_announced
from cached_session.replication.pull import pull
from tests.replication.devices import wait_until
from tests.unit.replication.devices import THEM, items, operation, put
from tests.unit.replication.fakes import SESSION, UNREACHABLE, Clock, FakeServer, context_of

TALK = SESSION.session_id


def named(counter: int, index: int = 0) -> str:
    """Return the id of a memory of the other device."""
    return memory_id(SESSION.key, Dot(THEM, counter), index)


async def test_one_memory_costs_one_request() -> None:
    """Whatever the history holds, no listing is read."""
    server = FakeServer()
    put(server, *(operation(counter) for counter in range(1, 31)))
    context = context_of(server)
    await pull(context, SESSION)
    put(server, operation(31))
    server.requests.clear()
    result, absent = await fetch_announced(context, SESSION, [named(31)])
    assert (result.new, absent) == (1, [])
    assert server.requests == ["fetch"]
    assert items(context.journal)[-1] == "t31"


async def test_a_memory_that_is_here_costs_no_request() -> None:
    """Neither do ids of other sessions, or ids that no operation has."""
    server = FakeServer()
    put(server, operation(1))
    context = context_of(server)
    await pull(context, SESSION)
    server.requests.clear()
    foreign = memory_id("f" * 64, Dot(THEM, 2), 0)
    result, absent = await fetch_announced(context, SESSION, [named(1), foreign, "cs2-nonsense"])
    assert (result.new, absent, server.requests) == (0, [], [])


async def test_the_parts_that_no_event_named_are_fetched() -> None:
    """One event is enough for a batch of three items."""
    server = FakeServer()
    put(server, operation(1, '"a"', '"b"', '"c"'))
    context = context_of(server)
    result, absent = await fetch_announced(context, SESSION, [named(1, 1)])
    assert (result.new, absent) == (1, [])
    assert items(context.journal) == ["a", "b", "c"]


async def test_the_operation_before_a_named_one_is_fetched() -> None:
    """Its event may be lost: the counter shows that it exists."""
    server = FakeServer()
    put(server, operation(1), operation(2))
    context = context_of(server)
    result, absent = await fetch_announced(context, SESSION, [named(2)])
    assert (result.new, absent) == (2, [])
    assert items(context.journal) == ["t1", "t2"]


async def test_many_memories_are_listed_in_one_request() -> None:
    """One page has them all, and one memory below them."""
    server = FakeServer()
    put(server, *(operation(counter) for counter in range(1, 11)))
    context = context_of(server)
    await pull(context, SESSION)
    put(server, *(operation(counter) for counter in range(11, 19)))
    server.requests.clear()
    events = [named(counter) for counter in range(11, 19)]
    result, absent = await fetch_announced(context, SESSION, events)
    assert (result.new, absent) == (8, [])
    assert server.requests == ["list"]


async def test_a_memory_that_the_server_does_not_show_yet_is_absent() -> None:
    """Those that it shows are applied, also if the request for another one fails."""
    server = FakeServer()
    put(server, operation(1))
    context = context_of(server, parallel_requests=1)
    result, absent = await fetch_announced(context, SESSION, [named(1), named(2)])
    assert (result.new, absent) == (1, [named(2)])
    put(server, operation(2))
    server.failures["fetch"] = [UNREACHABLE]
    with pytest.raises(RemoteError):
        await fetch_announced(context, SESSION, [named(3), named(2)])
    assert items(context.journal) == ["t1", "t2"]


class Made:
    """A fetcher, and what it reports."""

    def __init__(self, server: FakeServer) -> None:
        self.clock = Clock()
        self.context = context_of(server, clock=self.clock, watch_interval=0.001)
        self.pulled: list[str] = []
        self.given_up: list[str] = []
        self.news = 0
        self.fetcher = AnnouncedFetcher(
            self.context,
            on_pulled=self.pulled.append,
            on_news=self._count,
            on_given_up=self.given_up.append,
        )

    def _count(self) -> None:
        self.news += 1


async def _until(condition: Callable[[], bool]) -> None:
    await wait_until(condition, 20)


async def test_a_memory_is_asked_for_again_until_it_is_here() -> None:
    """An event may be quicker than the node that answers."""
    server = FakeServer()
    made = Made(server)
    async with anyio.create_task_group() as group:
        group.start_soon(made.fetcher.run)
        made.fetcher.add(TALK, named(1))
        await _until(lambda: server.requests.count("fetch") == 1)
        assert made.fetcher.is_waiting(TALK)
        put(server, operation(1))
        await anyio.sleep(0.01)
        assert items(made.context.journal) == []
        made.clock.advance(0.2)
        await _until(lambda: items(made.context.journal) == ["t1"])
        await _until(lambda: not made.fetcher.is_waiting(TALK))
        group.cancel_scope.cancel()
    assert (made.news, made.given_up) == (1, [])
    assert TALK in made.pulled


async def test_a_failure_pauses_the_session_and_the_memory_waits() -> None:
    """A memory that never arrives is left to the pulls in the end."""
    server = FakeServer()
    server.failures["fetch"] = [UNREACHABLE]
    made = Made(server)
    async with anyio.create_task_group() as group:
        group.start_soon(made.fetcher.run)
        made.fetcher.add(TALK, named(1))
        await _until(lambda: server.requests == ["fetch"])
        for _ in range(2000):
            if made.given_up:
                break
            made.clock.advance(5)
            await anyio.sleep(0.002)
        group.cancel_scope.cancel()
    assert made.given_up == [TALK]
    assert 2 < server.requests.count("fetch") <= 6
    assert made.news == 0
