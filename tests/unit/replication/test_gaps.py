"""Searching for missing operations by id."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cached_session.journal.journal import Journal
from cached_session.remote.errors import RemoteError
from cached_session.remote.wire import placeholder
from cached_session.replication.context import Context
from cached_session.replication.gaps import fill_gaps, search_gaps
from cached_session.replication.ingest import apply_page, read_page
from cached_session.replication.results import PullResult
from tests.unit.replication.devices import items, operation, put
from tests.unit.replication.fakes import SESSION, UNREACHABLE, Clock, FakeServer, context_of


async def with_gaps(server: FakeServer, clock: Clock | None = None, upto: int = 4) -> Context:
    """Return a journal that has the last of the other device's operations, and not those below."""
    context = context_of(server, clock=clock, backoff_base=1.0)
    put(server, operation(upto))
    page = await read_page(await server.list_memories("", offset=0, limit=9), SESSION.key)
    await apply_page(context, SESSION, page, PullResult())
    server.requests.clear()
    return context


def gaps(journal: Journal) -> list[tuple[int, int]]:
    """Return the counter and the number of searches of each gap."""
    found = journal.read_blocking(
        lambda conn: conn.execute("SELECT counter, tries FROM holes ORDER BY counter").fetchall()
    )
    return [tuple(row) for row in found]


async def test_gaps_are_filled_by_id() -> None:
    """Although no listing shows the operations."""
    server = FakeServer()
    context = await with_gaps(server)
    put(server, *(operation(counter) for counter in (1, 2, 3)))
    result = await fill_gaps(context, SESSION)
    assert result.new == 3
    assert items(context.journal) == ["t1", "t2", "t3", "t4"]
    assert gaps(context.journal) == []
    assert server.requests == ["fetch"] * 3
    await fill_gaps(context, SESSION)
    assert server.requests == ["fetch"] * 3


async def test_a_gap_that_is_not_found_is_searched_for_later() -> None:
    """Soon at first; a caller that waits can ask for all of them."""
    server, clock = FakeServer(), Clock()
    context = await with_gaps(server, clock, upto=2)
    await search_gaps(context, SESSION, PullResult(), all_gaps=False)
    assert gaps(context.journal) == [(1, 1)]
    await search_gaps(context, SESSION, PullResult(), all_gaps=False)
    assert gaps(context.journal) == [(1, 1)]
    clock.advance(1.1)
    await search_gaps(context, SESSION, PullResult(), all_gaps=False)
    assert gaps(context.journal) == [(1, 2)]
    await search_gaps(context, SESSION, PullResult(), all_gaps=True)
    assert gaps(context.journal) == [(1, 3)]
    # Each search looks for the operation and for its placeholder, in both wire versions.
    assert server.requests == ["fetch"] * 4 * 3


async def test_a_placeholder_explains_a_gap() -> None:
    """The operation is parked on its device, and not lost."""
    server = FakeServer()
    context = await with_gaps(server, upto=2)
    note = placeholder(operation(1), SESSION.session_id)
    server.rows[note["id"]] = note
    await fill_gaps(context, SESSION)
    (row,) = context.journal.read_blocking(
        lambda conn: conn.execute("SELECT explained FROM holes").fetchall()
    )
    assert row == (1,)


async def test_a_gap_of_version_1_is_filled_despite_a_forged_part_of_version_2() -> None:
    """A search tries the ids of each version until one of them has all parts."""
    server = FakeServer()
    context = await with_gaps(server, upto=2)
    real = replace(operation(1), version=1)
    put(server, replace(operation(1, '"forged"', '"never sent"'), stamp=7), only=[0])
    put(server, real)
    await fill_gaps(context, SESSION)
    server.requests.clear()
    assert items(context.journal) == ["t1", "t2"]
    await fill_gaps(context, SESSION)
    assert server.requests == []


async def test_a_placeholder_of_version_1_explains_a_gap() -> None:
    """Its id differs from that of a placeholder of version 2."""
    server = FakeServer()
    context = await with_gaps(server, upto=2)
    note = placeholder(replace(operation(1), version=1), SESSION.session_id)
    assert note["id"].startswith("cs1-")
    server.rows[note["id"]] = note
    await fill_gaps(context, SESSION)
    (row,) = context.journal.read_blocking(
        lambda conn: conn.execute("SELECT explained FROM holes").fetchall()
    )
    assert row == (1,)


async def test_a_batch_that_is_there_in_part_is_kept_and_explained() -> None:
    """Its parts wait for the rest, and need not be fetched again."""
    server = FakeServer()
    context = await with_gaps(server, upto=2)
    batch = operation(1, '"a"', '"b"', '"c"')
    put(server, batch, only=[0, 2])
    note = placeholder(batch, SESSION.session_id)
    server.rows[note["id"]] = note
    await fill_gaps(context, SESSION)
    assert items(context.journal) == ["t2"]
    # Two parts, one part of wire version 1, and the placeholder.
    assert server.requests == ["fetch"] * 4
    put(server, batch)
    await fill_gaps(context, SESSION)
    assert items(context.journal) == ["a", "b", "c", "t2"]
    assert server.requests == ["fetch"] * 6


async def test_a_failure_does_not_stop_the_other_searches() -> None:
    """What they find is applied, and the failure is the caller's."""
    server = FakeServer()
    context = await with_gaps(server)
    put(server, *(operation(counter) for counter in (1, 2, 3)))
    server.failures["fetch"] = [None, UNREACHABLE, None]
    with pytest.raises(RemoteError):
        await fill_gaps(context, SESSION)
    assert len(items(context.journal)) == 3
    assert [tries for _, tries in gaps(context.journal)] == [0]


async def test_a_session_without_gaps_asks_nothing() -> None:
    """Nor does an unknown one."""
    server = FakeServer()
    context = await with_gaps(server, upto=1)
    assert await fill_gaps(context, SESSION) == PullResult()
    assert await fill_gaps(context_of(server), SESSION) == PullResult()
    assert server.requests == []
