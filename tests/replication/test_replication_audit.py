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
    assert_one_history,
    items_on_server,
    kinds_on_server,
    sync_all,
    text_message,
    texts,
)

pytestmark = pytest.mark.promise(number=8)


async def fill_two_devices(a: CachedSession, b: CachedSession) -> list[str]:
    """Write a conversation on two devices with pops, large items, and a clear at its beginning."""
    await a.add_items([text_message("forgotten")])
    await sync_all(a, b)
    await b.clear_session()
    await sync_all(b, a)
    for number in range(12):
        who = a if number % 2 else b
        await who.add_items([text_message(f"{number}.{part}") for part in range(1 + number % 3)])
    await a.add_items([text_message("long " * 12_000)])
    await sync_all(a, b)
    await b.add_items([text_message("popped")])
    await sync_all(b, a)
    assert await a.pop_item() == text_message("popped")
    await sync_all(a, b)
    return texts(await a.get_items())


@pytest.mark.parametrize("share", [0.3, 1.0])
@pytest.mark.parametrize("seed", [1, 2])
async def test_an_audit_restores_what_the_server_lost(
    device: Devices, server: DevServer, share: float, seed: int
) -> None:
    """After the server lost some or all memories, one device's audit stores the operations of both
    again, and a new device has the whole history."""
    a, b = await device("a"), await device("b")
    expected = await fill_two_devices(a, b)
    before = kinds_on_server(server)
    chance = random.Random(seed)
    lost = server.evict(AGENT, lambda _: chance.random() < share)
    assert lost
    report = await a.audit()
    assert report.healed > 0
    assert report.listed == len(before) - lost
    assert kinds_on_server(server) == before
    assert await assert_one_history(device.new("late"), a, b) == expected
    assert (await b.audit()).healed == 0


async def test_an_audit_updates_an_old_backup(device: Devices, server: DevServer) -> None:
    """After the server was restored from an old backup, an audit stores what is newer and deletes
    again what was removed."""
    a, b = await device("a"), await device("b")
    await a.add_items([text_message("one"), text_message("two")])
    await sync_all(a, b)
    backup = server.snapshot()
    assert await b.pop_item() == text_message("two")
    await a.add_items([text_message("three")])
    await sync_all(b, a)
    expected = texts(await a.get_items())
    server.restore(backup)
    assert items_on_server(server) == ["one", "two"]
    report = await a.audit()
    assert report.healed == 2
    assert report.forgotten >= 1
    assert "two" not in items_on_server(server)
    assert await assert_one_history(device.new("late"), a, b) == expected == ["one", "three"]


async def test_an_audit_restores_no_cleared_item(device: Devices, server: DevServer) -> None:
    """A backup from before a clear does not bring the cleared items back, on any device."""
    a, b = await device("a"), await device("b")
    await a.add_items([text_message("one"), text_message("two")])
    await sync_all(a, b)
    backup = server.snapshot()
    await a.clear_session()
    await sync_all(a, b)
    server.restore(backup)
    assert (await b.audit()).forgotten == 2
    assert items_on_server(server) == []
    assert await assert_one_history(device.new("late"), a, b) == []


async def test_an_audit_changes_nothing_on_a_complete_server(
    device: Devices, server: DevServer
) -> None:
    """An audit of a complete server stores and deletes nothing."""
    a, b = await device("a"), await device("b")
    await fill_two_devices(a, b)
    stores = server.requests.count(BATCH)
    memories = server.memories(AGENT)
    report = await a.audit()
    assert (report.healed, report.applied, report.forgotten) == (0, 0, 0)
    assert report.listed == len(memories)
    assert server.requests.count(BATCH) == stores
    assert server.memories(AGENT) == memories


async def test_an_audit_sends_and_fetches(device: Devices, server: DevServer) -> None:
    """An audit sends pending operations and applies those of another device."""
    a, b = await device("a"), await device("b")
    await b.add_items([text_message("theirs")])
    await b.sync()
    await a.add_items([text_message("mine")])
    assert (await a.audit()).applied == 1
    assert a.status().pending == 0
    assert sorted(items_on_server(server)) == ["mine", "theirs"]


async def test_an_audit_compares_every_page(device: Devices, server: DevServer) -> None:
    """An audit compares every page of a long listing."""
    a = await device("a", options=replace(MANUAL, page_size=50, first_page_size=50))
    for number in range(300):
        await a.add_items([text_message(str(number))])
    await a.sync()
    lost = server.evict(AGENT, lambda m: int(m["content"]) % 7 == 0)
    report = await a.audit()
    assert report.healed == lost
    assert items_on_server(server) == [str(number) for number in range(300)]


async def test_an_interrupted_audit_is_finished_by_the_next(
    device: Devices, server: DevServer
) -> None:
    """An audit that lost its connection raises, and the next one finishes its work."""
    a = await device("a")
    for number in range(10):
        await a.add_items([text_message(str(number))])
    await a.sync()
    server.evict(AGENT, lambda _: True)
    server.faults.lose_response(route=BATCH, count=1)
    with pytest.raises(Exception, match=server.url):
        await a.audit()
    await a.audit()
    assert items_on_server(server) == [str(number) for number in range(10)]


async def test_an_audit_with_a_refused_key_raises_unauthorized(
    device: Devices, server: DevServer
) -> None:
    """An audit with a key that the server refuses raises Unauthorized."""
    a = await device("a")
    with server.faults.status(401), pytest.raises(Unauthorized):
        await a.audit()


async def test_an_item_removed_during_an_audit_is_deleted_again(
    device: Devices, server: DevServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An item that the server lost, and that another device pops just before an audit stores it
    again, does not stay on the server."""
    a, b = await device("a"), await device("b")
    await a.add_items([text_message("one"), text_message("two")])
    await sync_all(a, b)
    assert server.evict(AGENT, lambda memory: memory["content"] == "two") == 1
    put_back = audit.store

    async def late(
        context: Context, session_id: str, memories: Sequence[EncodedMemory]
    ) -> set[str]:
        assert await b.pop_item() == text_message("two")
        await b.sync(timeout=PATIENCE)
        return await put_back(context, session_id, memories)

    monkeypatch.setattr(audit, "store", late)
    assert (await a.audit()).healed == 1
    assert items_on_server(server) == ["one"]
    assert await assert_one_history(a, b, device.new("late")) == ["one"]


async def test_an_audit_replaces_a_damaged_memory(device: Devices, server: DevServer) -> None:
    """An audit sends a memory again when the server changed its content."""
    a = await device("a")
    await a.add_items([text_message("one")])
    await a.sync()
    with server.state.lock:
        (record,) = server.state.agents[AGENT].records.values()
        record.doc["metadata"] = {**record.doc["metadata"], "cs_x": '{"role":"user"}'}
    assert await device.new("b").get_items() == []
    assert (await a.audit()).healed == 1
    assert await assert_one_history(device.new("c"), a) == ["one"]
