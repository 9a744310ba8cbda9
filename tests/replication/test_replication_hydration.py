from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import replace

import pytest

from cached_session import CachedSession, Progress
from cached_session.devserver import DevServer
from tests.replication.devices import (
    LISTING,
    MANUAL,
    PATIENCE,
    QUICK,
    Devices,
    text_message,
    texts,
    wait_until,
)

PATIENT = MANUAL
"""The first read waits for the history as long as a test may take."""
HASTY = replace(MANUAL, hydrate_timeout=0.3)


async def fill(session: CachedSession, count: int, batch: int = 1) -> list[str]:
    for start in range(0, count, batch):
        await session.add_items(
            [text_message(str(n)) for n in range(start, min(count, start + batch))]
        )
    await session.sync(timeout=PATIENCE)
    return [str(number) for number in range(count)]


async def test_the_first_read_waits_for_the_history(device: Devices, server: DevServer) -> None:
    """The first read of a new device waits for the history, even when the server is slow."""
    expected = await fill(await device("a"), 20)
    server.faults.latency(0.1)
    assert texts(await device.new("b", options=PATIENT).get_items()) == expected


async def test_a_first_read_during_the_first_pull_waits_too(
    device: Devices, server: DevServer
) -> None:
    """A first read during the first pull gets the history without waiting for the next poll."""
    await fill(await device("a"), 1)
    b = device.new("b", options=PATIENT)
    slow = server.faults.latency(0.2, route=LISTING)
    await b.add_items([text_message("mine")])
    await wait_until(lambda: slow.fired)
    assert sorted(texts(await b.get_items())) == ["0", "mine"]


@pytest.mark.promise(number=2)
async def test_a_first_read_without_hydration_never_waits(
    device: Devices, server: DevServer
) -> None:
    """With hydrate=False the first read returns immediately, and the history comes later."""
    expected = await fill(await device("a"), 3)
    b = device.new("b", options=replace(QUICK, request_timeout=1.0), hydrate=False)
    with server.faults.latency(3600):
        assert await b.get_items() == []
        assert not b.status().hydrated

    async def shows() -> bool:
        return texts(await b.get_items()) == expected

    await wait_until(shows)


@pytest.mark.promise(number=2)
async def test_a_hanging_server_delays_the_first_read_by_its_timeout_only(
    device: Devices, server: DevServer
) -> None:
    """With a server that hangs, the first read takes hydrate_timeout, and no later one waits."""
    hanging = server.faults.latency(3600)
    b = device.new("b", options=HASTY)
    began = time.monotonic()
    assert await b.get_items() == []
    assert time.monotonic() - began >= HASTY.hydrate_timeout
    await wait_until(lambda: hanging.fired)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(b._engine, "options", replace(HASTY, hydrate_timeout=3600.0))
        for _ in range(5):
            assert await asyncio.wait_for(b.get_items(), PATIENCE) == []
    assert b.status().state == "connecting"


@pytest.mark.promise(number=2)
async def test_an_unreachable_server_delays_no_first_read(
    device: Devices, server: DevServer
) -> None:
    """Without a server, the first read ends with the first failure, and once the server is known to
    be unreachable the first read of another session does not wait."""
    server.stop()
    endless = replace(MANUAL, hydrate_timeout=3600.0)
    b = device.new("b", options=endless)
    assert await asyncio.wait_for(b.get_items(), PATIENCE) == []
    other = device.new("b", session_id="other", options=endless)
    assert await asyncio.wait_for(other.get_items(), PATIENCE) == []
    assert other.status().state == "offline"
    server.start()


async def test_a_session_first_read_offline_gets_its_history_later(
    device: Devices, server: DevServer
) -> None:
    """A session first read while the server was down shows its history once the server is back."""
    expected = await fill(await device("a"), 3)
    server.stop()
    b = device.new("b", options=QUICK)
    assert await b.get_items() == []
    assert not b.status().hydrated
    server.start()

    async def shows() -> bool:
        return texts(await b.get_items()) == expected

    await wait_until(shows)
    await wait_until(lambda: b.status().hydrated)


async def test_the_tail_arrives_with_the_first_page(device: Devices, server: DevServer) -> None:
    """A read of the last 20 returns as soon as the first page is there, while the rest follows."""
    a = await device("a")
    expected = []
    for part in range(10):
        expected += [f"{part}.{number}" for number in range(30)]
        for text in expected[-30:]:
            await a.add_items([text_message(text)])
        await a.sync(timeout=PATIENCE)
        server.clock.advance(5)
    server.faults.latency(3600, route=LISTING, skip=1)
    b = device.new("b", options=replace(PATIENT, first_page_size=50, page_size=100))
    assert texts(await b.get_items(limit=20)) == expected[-20:]
    assert len(await b.get_items()) < len(expected)
    await b.close()
    server.faults.clear()
    b = device.new("b")
    await b.sync(timeout=PATIENCE)
    assert texts(await b.get_items()) == expected


async def test_the_tail_has_no_gaps(device: Devices, server: DevServer) -> None:
    """When all memories have the same second, a read of the last 20 returns adjacent items, and not
    parts of many turns."""
    server.clock.freeze()
    await fill(await device("a"), 400)
    b = device.new("b", options=replace(PATIENT, first_page_size=100))
    found = [int(text) for text in texts(await b.get_items(limit=20))]
    assert found == list(range(found[0], found[0] + 20))


async def test_progress_is_reported(device: Devices, server: DevServer) -> None:
    """The callback gets growing numbers of items, and a last call at the end."""
    await fill(await device("a"), 200, batch=1)
    heard: list[Progress] = []
    options = replace(PATIENT, first_page_size=30, page_size=60)
    b = device.new("b", options=options, on_progress=heard.append)
    server.faults.latency(0.03, route=LISTING)
    assert len(await b.get_items()) == 200
    assert [one.items for one in heard] == sorted(one.items for one in heard)
    assert heard[-1] == Progress("talk", 200, True)
    assert len({one.items for one in heard}) >= 3
    assert not heard[0].done


async def test_a_long_history_arrives_completely(device: Devices, server: DevServer) -> None:
    """A history of 3,000 items is there after the first read of a new device, in few requests."""
    expected = await fill(await device("a"), 3000, batch=30)
    server.requests.clear()
    b = device.new("b", options=replace(MANUAL, hydrate_timeout=20.0))
    assert texts(await b.get_items()) == expected
    assert b.status().hydrated
    await b.sync(timeout=PATIENCE)
    # The sync reads the last second again, in pages that grow from 3 to 500 memories.
    assert server.requests.count(LISTING) <= 24


async def test_a_sync_lists_a_new_device_once(device: Devices, server: DevServer) -> None:
    """`sync` waits for the pull that opening a session began."""
    expected = await fill(await device("a"), 300, batch=30)
    server.requests.clear()
    b = device.new("b")
    report = await b.sync(timeout=PATIENCE)
    assert report.pulled == 10
    assert texts(await b.get_items()) == expected
    # 100 rows, the rest, the end, and the pages that were requested ahead of that.
    assert server.requests.count(LISTING) <= 3 + b._engine.options.parallel_requests


async def test_each_sync_sees_everything_stored_before_it(device: Devices) -> None:
    """A pull that began before the call does not count."""
    a, b = await device("a"), await device("b")
    for number in range(5):
        await a.add_items([text_message(str(number))])
        await a.sync(timeout=PATIENCE)
        await b.sync(timeout=PATIENCE)
        assert len(await b.get_items()) == number + 1


async def test_the_first_read_does_not_wait_for_a_write(device: Devices) -> None:
    """The mark that a session is hydrated is stored after the write that is under way."""
    session = await device("a")
    other = session._engine
    other.hydration.forget()
    begun, go_on = threading.Event(), threading.Event()

    def long(_: object) -> None:
        begun.set()
        go_on.wait(120)

    writing = asyncio.ensure_future(other.journal.write(long))
    await asyncio.to_thread(begun.wait, 120)
    try:
        await asyncio.wait_for(session.get_items(), PATIENCE)
        assert not writing.done()
    finally:
        go_on.set()
        await writing


@pytest.mark.parametrize("limit", [0, -1])
async def test_a_read_with_limit_zero_does_not_wait(
    device: Devices, server: DevServer, limit: int
) -> None:
    """A limit of zero or less requests nothing and waits for nothing."""
    server.faults.latency(3600)
    b = device.new("b", options=replace(MANUAL, hydrate_timeout=3600.0))
    assert await asyncio.wait_for(b.get_items(limit=limit), PATIENCE) == []


async def test_a_hydrated_session_is_read_immediately(device: Devices, server: DevServer) -> None:
    """A journal that has hydrated a session answers from itself, also in a later process."""
    a = await device("a")
    await fill(a, 3)
    assert len(await a.get_items()) == 3
    await a.close()
    server.faults.latency(3600)
    again = device.new("a", options=replace(MANUAL, hydrate_timeout=3600.0))
    assert texts(await asyncio.wait_for(again.get_items(), PATIENCE)) == ["0", "1", "2"]


async def test_a_session_without_memories_is_hydrated_by_the_answer(
    device: Devices, server: DevServer
) -> None:
    """The first read of a session that exists nowhere ends with the server's answer."""
    a = device.new("a", options=replace(MANUAL, hydrate_timeout=3600.0))
    assert await asyncio.wait_for(a.get_items(), PATIENCE) == []
