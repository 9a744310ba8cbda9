"""A long listing that fails in the middle."""

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
    assert_one_history,
    text_message,
    texts,
    time_out,
    wait_until,
)

PAGES = replace(MANUAL, page_size=10, first_page_size=10, parallel_requests=1, hydrate_timeout=0.1)


async def add_spread(session: CachedSession, server: DevServer, count: int) -> list[str]:
    """Add that many items, minutes apart by the server's clock, so that a listing has one order."""
    for number in range(count):
        server.clock.advance(300)
        await session.add_items([text_message(str(number))])
        await session.sync(timeout=PATIENCE)
    return [str(number) for number in range(count)]


@pytest.mark.parametrize("asks", [None, 0.05], ids=["failures", "retry after"])
@pytest.mark.parametrize("order", ["by time", "any within a second"])
async def test_a_listing_survives_repeated_failures(
    device: Devices, server: DevServer, asks: float | None, order: str
) -> None:
    """When every third request fails, a history of many pages arrives nevertheless."""
    a = await device("a")
    if order == "by time":
        expected = await add_spread(a, server, 60)
    else:
        expected = [str(number) for number in range(60)]
        for text in expected:
            await a.add_items([text_message(text)])
        await a.sync(timeout=PATIENCE)
    server.faults.status(500 if asks is None else 503, retry_after=asks, every=3)
    b = device.new("b", options=replace(PAGES, hydrate_timeout=0.0))
    assert (await b.sync(timeout=PATIENCE)).pulled == 60
    assert texts(await b.get_items()) == expected
    assert (await b.audit()).listed == 60


async def test_an_interrupted_first_listing_resumes(device: Devices, server: DevServer) -> None:
    """Pages that had arrived are not listed again, and items added in the meantime are not
    missed."""
    a = await device("a")
    expected = await add_spread(a, server, 60)
    b = device.new("b", options=PAGES)
    with server.faults.status(500, route=LISTING, skip=9):
        await time_out(b.sync, lambda: server.requests.count(LISTING, status=500))
        assert 40 <= len(await b.get_items()) < 60
        await a.add_items([text_message("meanwhile")])
        await a.flush(timeout=PATIENCE)
        server.requests.clear()
    await b.sync(timeout=PATIENCE)
    # The remaining ones of twelve pages, and the top.
    assert server.requests.count(LISTING, status=200) <= 7
    assert texts(await b.get_items()) == [*expected, "meanwhile"]
    assert await assert_one_history(a, b) == [*expected, "meanwhile"]


async def test_an_interrupted_listing_that_shrank_starts_again(
    device: Devices, server: DevServer
) -> None:
    """The row at which the listing would resume is gone, and the rows that moved up are found."""
    a = await device("a")
    await add_spread(a, server, 60)
    b = device.new("b", options=PAGES)
    with server.faults.status(500, route=LISTING, skip=9):
        await time_out(b.sync, lambda: server.requests.count(LISTING, status=500))
    newest = [memory["id"] for memory in server.memories(AGENT)][:40]
    server.evict(AGENT, newest)
    await b.sync(timeout=PATIENCE)
    # The last operation of its writer, so that no gap shows it.
    assert "0" in texts(await b.get_items())
    await b.audit()
    assert await assert_one_history(a, b) == [str(number) for number in range(60)]


async def test_rows_that_moved_up_past_the_resume_position_are_found(
    device: Devices, server: DevServer
) -> None:
    """The next page does not continue the one before, so that the listing starts again. No gap
    would show a writer's only operation."""
    a, alone = await device("a"), await device("alone")
    await add_spread(a, server, 10)
    server.clock.advance(300)
    await alone.add_items([text_message("alone")])
    await alone.sync(timeout=PATIENCE)
    await add_spread(a, server, 50)
    b = device.new("b", options=PAGES)
    with server.faults.status(500, route=LISTING, skip=9):
        await time_out(b.sync, lambda: server.requests.count(LISTING, status=500))
        # Inside: once the server answers again, the background pull may resume at any moment.
        assert "alone" not in texts(await b.get_items())
        server.evict(AGENT, [memory["id"] for memory in server.memories(AGENT)][:10])
    await b.sync(timeout=PATIENCE)
    assert "alone" in texts(await b.get_items())


async def test_a_listing_that_must_wait_pauses_all_sessions(
    device: Devices, server: DevServer
) -> None:
    """A listing that gets a Retry-After in the middle pauses all sessions, ends the pause, and
    resumes."""
    expected = await add_spread(await device("a"), server, 30)
    b = device.new("b", options=replace(PAGES, hydrate_timeout=0.0))
    other = device.new("b", session_id="other", options=PAGES)
    await other.sync(timeout=PATIENCE)
    server.faults.status(503, retry_after=2, route=LISTING, skip=2, count=1)
    syncing = asyncio.ensure_future(b.sync(timeout=PATIENCE))
    assert 0 < await wait_until(lambda: other.status().retry_in) <= 2.2
    await syncing
    assert texts(await b.get_items()) == expected
    assert server.requests.count(LISTING, status=503) == 1
    assert other.status().last_error is None


async def test_a_failed_gap_search_keeps_the_results_of_others(
    device: Devices, server: DevServer
) -> None:
    """Gaps are searched in parallel: a failed search does not lose the results of the others."""
    a = await device("a")
    b = await device("b", options=replace(QUICK, poll_interval=3600, parallel_requests=1))
    for number in range(8):
        await a.add_items([text_message(str(number))])
    await a.sync(timeout=PATIENCE)
    known = type(server.state.agents[AGENT])
    whole = known.page

    def hiding(self: Any, offset: int, limit: int, *, with_children: bool) -> Any:
        found = whole(self, 0, 1000, with_children=with_children)
        return [r for r in found if r.doc["metadata"]["cs_c"] == 8][offset : offset + limit]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(known, "page", hiding)
        with server.faults.status(500, route=GET, skip=3):
            await time_out(b.sync, lambda: server.requests.count(GET, status=500))
        assert len(texts(await b.get_items())) == 1 + 3
        await b.sync(timeout=PATIENCE)
    assert await assert_one_history(a, b) == [str(number) for number in range(8)]
