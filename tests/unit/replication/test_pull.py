"""Pulling one session."""

from __future__ import annotations

import pytest

from cached_session.journal.tables.pull_state import PullState
from cached_session.remote.errors import RemoteError
from cached_session.replication.pull import pull
from tests.unit.replication.devices import items, operation, put
from tests.unit.replication.fakes import SESSION, UNREACHABLE, Clock, FakeServer, context_of


async def test_a_first_pull_brings_the_whole_history() -> None:
    """Page by page, newest first, and the state says so afterwards."""
    server = FakeServer()
    put(server, *(operation(counter) for counter in range(1, 31)))
    applied = []
    context = context_of(server, page_size=10, first_page_size=5)
    result = await pull(context, SESSION, lambda: applied.append(len(items(context.journal))))
    assert (result.new, result.finished, result.went_back) == (30, True, False)
    assert items(context.journal) == [f"t{counter}" for counter in range(1, 31)]
    assert applied[0] == 5
    assert applied[-1] == 30
    state = await context.journal.pulls.of(SESSION)
    assert state == PullState(True, True, 130, state.since_ms)


async def test_a_later_pull_reads_one_page() -> None:
    """Once nothing was stored for long, one pull looks for late memories, and the next reads one
    page, also if it brings something."""
    server, clock = FakeServer(), Clock()
    put(server, *(operation(counter) for counter in range(1, 31)))
    context = context_of(server, clock=clock, page_size=10, first_page_size=5)
    await pull(context, SESSION)
    clock.advance(121)
    assert (await pull(context, SESSION)).pages > 1
    for counter in (31, 32):
        server.requests.clear()
        result = await pull(context, SESSION)
        assert (result.new, result.finished) == (counter - 31, True)
        assert server.requests == ["list"]
        put(server, operation(counter))
        clock.advance(5)


async def test_a_burst_is_pulled_again_in_one_page() -> None:
    """A sync just after a burst does not read the burst a second time."""
    server, clock = FakeServer(), Clock()
    put(server, *(operation(counter) for counter in range(1, 31)))
    context = context_of(server, clock=clock, page_size=10, first_page_size=5)
    await pull(context, SESSION)
    clock.advance(5)
    server.requests.clear()
    await pull(context, SESSION)
    assert server.requests == ["list"]


async def test_an_empty_session_is_known_after_a_pull() -> None:
    """Its first read need not wait again."""
    context = context_of(FakeServer())
    result = await pull(context, SESSION)
    assert (result.pages, result.finished) == (1, True)
    assert await context.journal.pulls.of(SESSION) == PullState(True, True, 0, 0)


async def test_a_first_pull_resumes_where_it_was_interrupted() -> None:
    """And reads what was stored above meanwhile."""
    server = FakeServer()
    put(server, *(operation(counter) for counter in range(1, 41)))
    server.failures["list"] = [None, None, UNREACHABLE, UNREACHABLE, UNREACHABLE]
    context = context_of(
        server, page_size=10, first_page_size=10, parallel_requests=1, backoff_base=0.0001
    )
    with pytest.raises(RemoteError):
        await pull(context, SESSION)
    held = len(items(context.journal))
    assert 0 < held < 40
    assert SESSION.session_id in context.listing_checkpoints
    assert not (await context.journal.pulls.of(SESSION)).is_hydrated
    put(server, operation(41))
    result = await pull(context, SESSION)
    assert result.new == 41 - held
    assert result.finished
    assert context.listing_checkpoints == {}


async def test_a_server_that_shows_less_than_before_is_noticed() -> None:
    """It may have lost memories."""
    server = FakeServer()
    put(server, operation(1), operation(2))
    context = context_of(server)
    await pull(context, SESSION)
    server.rows.popitem()
    assert (await pull(context, SESSION)).went_back


async def test_gaps_are_searched_for_after_a_listing() -> None:
    """A listing may not show every operation."""
    server = FakeServer()
    put(server, operation(2))
    context = context_of(server)
    hidden = FakeServer()
    put(hidden, operation(1))

    async def fetch(agent: str, memory: str) -> object:
        return hidden.rows.get(memory)

    server.fetch = fetch  # type: ignore[method-assign, assignment]
    assert (await pull(context, SESSION)).new == 2
    assert items(context.journal) == ["t1", "t2"]


async def test_every_page_of_a_whole_pull_is_observed() -> None:
    """Known ones as well: an audit compares all of them with the journal."""
    server, clock = FakeServer(), Clock()
    put(server, *(operation(counter) for counter in range(1, 31)))
    context = context_of(server, clock=clock, page_size=10, first_page_size=10)
    await pull(context, SESSION)
    clock.advance(1000)
    seen: set[int] = set()
    await pull(
        context,
        SESSION,
        whole=True,
        on_page=lambda parts, _: seen.update(part.dot.counter for part in parts),
    )
    assert seen == set(range(1, 31))
