from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from cached_session import CachedSession, Unauthorized
from cached_session.devserver import DevServer
from cached_session.remote.wire import EncodedMemory
from cached_session.replication import audit
from cached_session.replication.context import Context
from tests.replication.devices import (
    AGENT,
    BATCH,
    MANUAL,
    PATIENCE,
    Devices,
    items_on,
    kinds_on,
    one_history,
    said,
    settle,
    texts,
)

pytestmark = pytest.mark.promise(number=8)


async def talk(a: CachedSession, b: CachedSession) -> list[str]:
    """A conversation of two devices with pops, large items, and a clear at its beginning."""
    await a.add_items([said("forgotten")])
    await settle(a, b)
    await b.clear_session()
    await settle(b, a)
    for number in range(12):
        who = a if number % 2 else b
        await who.add_items([said(f"{number}.{part}") for part in range(1 + number % 3)])
    await a.add_items([said("long " * 12_000)])
    await settle(a, b)
    await b.add_items([said("popped")])
    await settle(b, a)
    assert await a.pop_item() == said("popped")
    await settle(a, b)
    return texts(await a.get_items())


@pytest.mark.parametrize("share", [0.3, 1.0])
@pytest.mark.parametrize("seed", [1, 2])
async def test_what_the_server_lost_is_put_back(
    device: Devices, server: DevServer, share: float, seed: int
) -> None:
    """After the server lost some or all memories, one device's audit puts back what both wrote,
    and a device that comes later has the whole history."""
    a, b = await device("a"), await device("b")
    expected = await talk(a, b)
    before = kinds_on(server)
    chance = random.Random(seed)
    lost = server.evict(AGENT, lambda _: chance.random() < share)
    assert lost
    report = await a.audit()
    assert report.healed > 0
    assert report.listed == len(before) - lost
    assert kinds_on(server) == before
    assert await one_history(device.new("late"), a, b) == expected
    assert (await b.audit()).healed == 0


async def test_an_old_backup_is_brought_up_to_date(device: Devices, server: DevServer) -> None:
    """After the server went back to an old backup, an audit brings back what came later and has it
    forget again what was removed."""
    a, b = await device("a"), await device("b")
    await a.add_items([said("one"), said("two")])
    await settle(a, b)
    backup = server.snapshot()
    assert await b.pop_item() == said("two")
    await a.add_items([said("three")])
    await settle(b, a)
    expected = texts(await a.get_items())
    server.restore(backup)
    assert items_on(server) == ["one", "two"]
    report = await a.audit()
    assert report.healed == 2
    assert report.forgotten >= 1
    assert "two" not in items_on(server)
    assert await one_history(device.new("late"), a, b) == expected == ["one", "three"]


async def test_what_was_cleared_stays_cleared(device: Devices, server: DevServer) -> None:
    """A backup from before a clear does not bring the cleared items back, on any device."""
    a, b = await device("a"), await device("b")
    await a.add_items([said("one"), said("two")])
    await settle(a, b)
    backup = server.snapshot()
    await a.clear_session()
    await settle(a, b)
    server.restore(backup)
    assert (await b.audit()).forgotten == 2
    assert items_on(server) == []
    assert await one_history(device.new("late"), a, b) == []


async def test_a_server_that_lost_nothing_is_left_alone(device: Devices, server: DevServer) -> None:
    """An audit of a server that has everything stores and forgets nothing."""
    a, b = await device("a"), await device("b")
    await talk(a, b)
    stores = server.requests.count(BATCH)
    memories = server.memories(AGENT)
    report = await a.audit()
    assert (report.healed, report.applied, report.forgotten) == (0, 0, 0)
    assert report.listed == len(memories)
    assert server.requests.count(BATCH) == stores
    assert server.memories(AGENT) == memories


async def test_an_audit_sends_and_fetches_too(device: Devices, server: DevServer) -> None:
    """An audit sends what is pending and applies what another device wrote."""
    a, b = await device("a"), await device("b")
    await b.add_items([said("theirs")])
    await b.sync()
    await a.add_items([said("mine")])
    assert (await a.audit()).applied == 1
    assert a.status().pending == 0
    assert sorted(items_on(server)) == ["mine", "theirs"]


async def test_an_audit_of_many_pages(device: Devices, server: DevServer) -> None:
    """An audit compares every page of a long listing."""
    a = await device("a", options=replace(MANUAL, page_size=50, first_page_size=50))
    for number in range(300):
        await a.add_items([said(str(number))])
    await a.sync()
    lost = server.evict(AGENT, lambda m: int(m["content"]) % 7 == 0)
    report = await a.audit()
    assert report.healed == lost
    assert items_on(server) == [str(number) for number in range(300)]


async def test_an_interrupted_audit_goes_on(device: Devices, server: DevServer) -> None:
    """An audit that lost its connection raises, and the next one finishes its work."""
    a = await device("a")
    for number in range(10):
        await a.add_items([said(str(number))])
    await a.sync()
    server.evict(AGENT, lambda _: True)
    server.faults.lose_response(route=BATCH, count=1)
    with pytest.raises(Exception, match=server.url):
        await a.audit()
    await a.audit()
    assert items_on(server) == [str(number) for number in range(10)]


async def test_an_audit_with_a_refused_key(device: Devices, server: DevServer) -> None:
    """An audit with a key that the server refuses raises Unauthorized."""
    a = await device("a")
    with server.faults.status(401), pytest.raises(Unauthorized):
        await a.audit()


async def test_what_is_removed_while_an_audit_puts_it_back_goes_again(
    device: Devices, server: DevServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An item that the server lost, and that another device pops just before an audit stores it
    again, does not stay on the server."""
    a, b = await device("a"), await device("b")
    await a.add_items([said("one"), said("two")])
    await settle(a, b)
    assert server.evict(AGENT, lambda memory: memory["content"] == "two") == 1
    put_back = audit.store

    async def late(
        context: Context, session_id: str, memories: Sequence[EncodedMemory]
    ) -> set[str]:
        assert await b.pop_item() == said("two")
        await b.sync(timeout=PATIENCE)
        return await put_back(context, session_id, memories)

    monkeypatch.setattr(audit, "store", late)
    assert (await a.audit()).healed == 1
    assert items_on(server) == ["one"]
    assert await one_history(a, b, device.new("late")) == ["one"]


async def test_a_damaged_memory_is_healed(device: Devices, server: DevServer) -> None:
    """A memory whose content the server rewrote is sent again by an audit."""
    a = await device("a")
    await a.add_items([said("one")])
    await a.sync()
    with server.state.lock:
        (record,) = server.state.agents[AGENT].records.values()
        record.doc["metadata"] = {**record.doc["metadata"], "cs_x": '{"role":"user"}'}
    assert await device.new("b").get_items() == []
    assert (await a.audit()).healed == 1
    assert await one_history(device.new("c"), a) == ["one"]
