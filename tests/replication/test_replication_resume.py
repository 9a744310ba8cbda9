"""A long listing over a way, or from a server, that fails in its middle."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from cached_session import CachedSession
from cached_session.devserver import DevServer
from tests.replication.devices import (
    AGENT,
    GET,
    LISTING,
    MANUAL,
    PATIENCE,
    QUICK,
    Devices,
    in_vain,
    one_history,
    said,
    texts,
    until,
)

PAGES = replace(MANUAL, page_size=10, first_page_size=10, parallel_requests=1, hydrate_timeout=0.1)


async def spread(session: CachedSession, server: DevServer, count: int) -> list[str]:
    """So many words, minutes apart by the server's clock: a listing has one order."""
    for number in range(count):
        server.clock.advance(300)
        await session.add_items([said(str(number))])
        await session.sync(timeout=PATIENCE)
    return [str(number) for number in range(count)]


@pytest.mark.parametrize("asks", [None, 0.05], ids=["stumbles", "asks for a moment"])
@pytest.mark.parametrize("order", ["by time", "any within a second"])
async def test_a_listing_outlives_a_server_that_fails_again_and_again(
    device: Devices, server: DevServer, asks: float | None, order: str
) -> None:
    """Where each third request fails, a history of many pages arrives nevertheless."""
    a = await device("a")
    if order == "by time":
        expected = await spread(a, server, 60)
    else:
        expected = [str(number) for number in range(60)]
        for text in expected:
            await a.add_items([said(text)])
        await a.sync(timeout=PATIENCE)
    server.faults.status(500 if asks is None else 503, retry_after=asks, every=3)
    b = device.new("b", options=replace(PAGES, hydrate_timeout=0.0))
    assert (await b.sync(timeout=PATIENCE)).pulled == 60
    assert texts(await b.get_items()) == expected
    assert (await b.audit()).listed == 60


async def test_a_first_listing_goes_on_where_it_was_broken_off(
    device: Devices, server: DevServer
) -> None:
    """What had come is not listed again, and what was said meanwhile is not missed."""
    a = await device("a")
    expected = await spread(a, server, 60)
    b = device.new("b", options=PAGES)
    with server.faults.status(500, route=LISTING, skip=9):
        await in_vain(b.sync, lambda: server.requests.count(LISTING, status=500))
        assert 40 <= len(await b.get_items()) < 60
        await a.add_items([said("meanwhile")])
        await a.flush(timeout=PATIENCE)
        server.requests.clear()
    await b.sync(timeout=PATIENCE)
    # Of twelve pages what was left of them, and the top.
    assert server.requests.count(LISTING, status=200) <= 7
    assert texts(await b.get_items()) == [*expected, "meanwhile"]
    assert await one_history(a, b) == [*expected, "meanwhile"]


async def test_a_listing_that_shrank_while_it_was_broken_off_begins_anew(
    device: Devices, server: DevServer
) -> None:
    """Where it would go on there is nothing any more: what moved up is found all the same."""
    a = await device("a")
    await spread(a, server, 60)
    b = device.new("b", options=PAGES)
    with server.faults.status(500, route=LISTING, skip=9):
        await in_vain(b.sync, lambda: server.requests.count(LISTING, status=500))
    newest = [memory["id"] for memory in server.memories(AGENT)][:40]
    server.evict(AGENT, newest)
    await b.sync(timeout=PATIENCE)
    # The last of its writer: no gap tells of it.
    assert "0" in texts(await b.get_items())
    await b.audit()
    assert await one_history(a, b) == [str(number) for number in range(60)]


async def test_what_moved_up_past_the_place_where_a_listing_goes_on_is_found(
    device: Devices, server: DevServer
) -> None:
    """What it would go on with does not continue what stood above it: it begins anew. No gap
    tells of a writer's only word."""
    a, alone = await device("a"), await device("alone")
    await spread(a, server, 10)
    server.clock.advance(300)
    await alone.add_items([said("alone")])
    await alone.sync(timeout=PATIENCE)
    await spread(a, server, 50)
    b = device.new("b", options=PAGES)
    with server.faults.status(500, route=LISTING, skip=9):
        await in_vain(b.sync, lambda: server.requests.count(LISTING, status=500))
    assert "alone" not in texts(await b.get_items())
    server.evict(AGENT, [memory["id"] for memory in server.memories(AGENT)][:10])
    await b.sync(timeout=PATIENCE)
    assert "alone" in texts(await b.get_items())


async def test_all_sessions_wait_while_the_server_asks_for_a_moment(
    device: Devices, server: DevServer
) -> None:
    """A listing that waits in its middle shuts the gate for everybody, opens it, and goes on."""
    expected = await spread(await device("a"), server, 30)
    b = device.new("b", options=replace(PAGES, hydrate_timeout=0.0))
    other = device.new("b", session_id="other", options=PAGES)
    await other.sync(timeout=PATIENCE)
    server.faults.status(503, retry_after=2, route=LISTING, skip=2, count=1)
    syncing = asyncio.ensure_future(b.sync(timeout=PATIENCE))
    assert 0 < await until(lambda: other.status().retry_in) <= 2.2
    await syncing
    assert texts(await b.get_items()) == expected
    assert server.requests.count(LISTING, status=503) == 1
    assert other.status().last_error is None


async def test_what_a_look_found_is_kept_though_another_failed(
    device: Devices, server: DevServer
) -> None:
    """Gaps are searched for side by side: one that cannot be asked for costs the others nothing."""
    a = await device("a")
    b = await device("b", options=replace(QUICK, poll_interval=3600, parallel_requests=1))
    for number in range(8):
        await a.add_items([said(str(number))])
    await a.sync(timeout=PATIENCE)
    known = type(server.state.agents[AGENT])
    whole = known.page

    def hiding(self: Any, offset: int, limit: int, *, with_children: bool) -> Any:
        found = whole(self, offset, limit, with_children=with_children)
        return [r for r in found if r.doc["metadata"]["cs_c"] == 8]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(known, "page", hiding)
        with server.faults.status(500, route=GET, skip=3):
            await in_vain(b.sync, lambda: server.requests.count(GET, status=500))
        assert len(texts(await b.get_items())) == 1 + 3
        await b.sync(timeout=PATIENCE)
    assert await one_history(a, b) == [str(number) for number in range(8)]
