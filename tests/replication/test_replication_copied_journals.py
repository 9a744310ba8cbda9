"""Copied journals: both copies keep writing, and there is one history in the end."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path

import pytest

from cached_session import CachedSession
from cached_session.devserver import DevServer
from cached_session.runtime import Runtime
from tests.replication.devices import (
    AGENT,
    BATCH,
    PATIENCE,
    QUICK,
    Devices,
    assert_one_history,
    items_on_server,
    kinds_on_server,
    sync_all,
    text_message,
    texts,
    time_out,
)

pytestmark = pytest.mark.promise(number=9)

BESIDE = ("-wal", "-shm")
"""Suffixes of the files that SQLite keeps beside an open one."""

Copy = Callable[[Devices, CachedSession, str, str], Awaitable[CachedSession]]
"""Copies the journal of an open session to another name, and returns the session that continues."""


async def say(session: CachedSession, *words: str) -> None:
    for word in words:
        await session.add_items([text_message(word)])


def file_of(device: Devices, name: str) -> Path:
    return device.root / f"{name}.db"


def copy_file(source: Path, target: Path) -> None:
    """Copy a closed journal, which is a single file, over any existing file."""
    for more in BESIDE:
        assert not Path(f"{source}{more}").exists()
        Path(f"{target}{more}").unlink(missing_ok=True)
    shutil.copyfile(source, target)


def vacuum_into(source: Path, target: Path) -> None:
    with closing(sqlite3.connect(source)) as conn:
        conn.execute("VACUUM INTO ?", (str(target),))


def back_up(source: Path, target: Path, pages: int = -1) -> None:
    with closing(sqlite3.connect(source)) as conn, closing(sqlite3.connect(target)) as other:
        conn.backup(other, pages=pages, sleep=0)


async def closed_copy(
    device: Devices, session: CachedSession, name: str, other: str
) -> CachedSession:
    with device.server.faults.down():  # a longer close timeout would send what is unsent
        await session.close()
    copy_file(file_of(device, name), file_of(device, other))
    return device.new(name)


async def vacuumed_copy(
    device: Devices, session: CachedSession, name: str, other: str
) -> CachedSession:
    await asyncio.to_thread(vacuum_into, file_of(device, name), file_of(device, other))
    return session


async def backed_up_copy(
    device: Devices, session: CachedSession, name: str, other: str
) -> CachedSession:
    await asyncio.to_thread(back_up, file_of(device, name), file_of(device, other))
    return session


WAYS = pytest.mark.parametrize(
    "copy", [closed_copy, vacuumed_copy, backed_up_copy], ids=["closed", "vacuum", "backup"]
)


def assert_no_duplicates(server: DevServer) -> None:
    """Assert that no item is on the server under two ids."""
    places = Counter(
        tuple(memory["metadata"][key] for key in ("cs_op", "cs_w", "cs_c", "cs_i", "cs_j"))
        for memory in server.memories(AGENT)
    )
    assert set(places.values()) <= {1}
    assert len({memory["id"] for memory in server.memories(AGENT)}) == len(places)


def stored_ops(server: DevServer) -> set[tuple[str, int]]:
    """Return the dots of all operations on the server."""
    return {
        (memory["metadata"]["cs_w"], memory["metadata"]["cs_c"])
        for memory in server.memories(AGENT)
    }


# -- a copy and its original go on --------------------------------------------------------------


@WAYS
async def test_writes_of_a_copy_and_its_original_are_all_kept(
    device: Devices, server: DevServer, copy: Copy
) -> None:
    """The separate writes of a copy and its original end in one history and on the server, each
    item once, the shared items first."""
    a = await device("a")
    await say(a, "one", "two")
    await a.sync()
    a = await copy(device, a, "a", "b")
    b = device.new("b")
    for number in range(5):
        await say(a, f"a{number}")
        await say(b, f"b{number}")
    found = await assert_one_history(a, b)
    mine, other = [f"a{n}" for n in range(5)], [f"b{n}" for n in range(5)]
    assert found in (["one", "two", *mine, *other], ["one", "two", *other, *mine])
    assert sorted(items_on_server(server)) == sorted(found)
    assert kinds_on_server(server) == ["append"] * 12
    assert_no_duplicates(server)
    assert await assert_one_history(device.new("late"), a, b) == found


@WAYS
async def test_operations_of_copies_never_share_a_dot(device: Devices, copy: Copy) -> None:
    """The next operation of a copy has another dot than that of the original, also without a server
    and with stopped clocks."""
    frozen = Runtime(wall_ms=lambda: 1_700_000_000_000)
    a = device.new("a", runtime=frozen)
    await say(a, "one")
    again = await copy(device, a, "a", "b")
    a = device.new("a", runtime=frozen) if again is not a else a
    b = device.new("b", runtime=frozen)
    await say(a, "a")
    await say(b, "b")

    async def name(session: CachedSession, word: str) -> tuple[str, int]:
        (entry,) = [e for e in await session.entries() if e.item == text_message(word)]
        return entry.writer, entry.counter

    assert await name(a, "one") == await name(b, "one")
    assert await name(a, "a") != await name(b, "b")
    assert sorted(await assert_one_history(a, b)) == ["a", "b", "one"]


@WAYS
async def test_both_copies_pop_the_same_item(
    device: Devices, server: DevServer, copy: Copy
) -> None:
    """Two pops of one item by a copy and its original remove that item and no other."""
    a = await device("a")
    await say(a, "keep", "drop")
    await a.sync()
    a = await copy(device, a, "a", "b")
    b = device.new("b")
    assert await a.pop_item() == await b.pop_item() == text_message("drop")
    await say(a, "a")
    await say(b, "b")
    found = await assert_one_history(a, b)
    assert found[0] == "keep"
    assert sorted(found) == ["a", "b", "keep"]
    assert sorted(items_on_server(server)) == sorted(found)
    assert kinds_on_server(server) == ["append"] * 3 + ["pop"] * 2
    assert_no_duplicates(server)


@WAYS
async def test_both_copies_pop_an_unsent_item(
    device: Devices, server: DevServer, copy: Copy
) -> None:
    """An unsent item that both copies pop is shown nowhere and stored nowhere."""
    a = await device("a")
    await say(a, "keep", "drop")
    a = await copy(device, a, "a", "b")
    b = device.new("b")
    assert await a.pop_item() == await b.pop_item() == text_message("drop")
    assert await assert_one_history(a, b) == ["keep"]
    assert await assert_one_history(device.new("late"), b, a) == ["keep"]
    assert items_on_server(server) == ["keep"]


@pytest.mark.promise(number=6)
@WAYS
async def test_a_clear_on_one_copy_keeps_new_items_of_the_other(
    device: Devices, server: DevServer, copy: Copy
) -> None:
    """A clear on one copy removes the shared items, sent or not, and keeps what the other has
    written since."""
    a = await device("a")
    await say(a, "one", "two")
    await a.sync()
    await say(a, "three")
    a = await copy(device, a, "a", "b")
    b = device.new("b")
    await say(a, "a")
    await b.clear_session()
    await say(b, "b")
    found = await assert_one_history(b, a)
    assert sorted(found) == ["a", "b"]
    await a.audit()  # "three" was sent again by the copy that did not know of the clear
    assert sorted(items_on_server(server)) == ["a", "b"]
    assert kinds_on_server(server) == ["append", "append", "clear"]
    assert await assert_one_history(device.new("late"), a, b) == found


@WAYS
async def test_both_copies_clear(device: Devices, server: DevServer, copy: Copy) -> None:
    """After clears on a copy and its original only later items are left."""
    a = await device("a")
    await say(a, "one", "two")
    a = await copy(device, a, "a", "b")
    b = device.new("b")
    await a.clear_session()
    await b.clear_session()
    await say(a, "a")
    await say(b, "b")
    found = await assert_one_history(a, b)
    assert sorted(found) == ["a", "b"]
    assert await assert_one_history(device.new("late"), a, b) == found
    assert sorted(items_on_server(server)) == ["a", "b"]


# -- copies with unsent operations --------------------------------------------------------------


@WAYS
@pytest.mark.parametrize("at_once", [False, True], ids=["in-turn", "at-once"])
async def test_unsent_operations_of_two_copies_are_stored_once(
    device: Devices, server: DevServer, copy: Copy, at_once: bool
) -> None:
    """Operations that both copies hold unsent are sent by both and are on the server once."""
    a = await device("a")
    await say(a, *(f"{number}" for number in range(30)))
    assert await a.pop_item() == text_message("29")
    a = await copy(device, a, "a", "b")
    b = device.new("b")
    assert b.status().pending == 31
    await say(b, "b")
    if at_once:
        await asyncio.gather(a.flush(timeout=PATIENCE), b.flush(timeout=PATIENCE))
    expected = [*(f"{number}" for number in range(29)), "b"]
    assert await assert_one_history(a, b) == expected
    assert sorted(items_on_server(server)) == sorted(expected)
    assert kinds_on_server(server).count("pop") == 1
    assert_no_duplicates(server)


async def test_an_answer_lost_to_one_copy_stores_nothing_twice(
    device: Devices, server: DevServer
) -> None:
    """A copy of a journal sends operations again that the server has already accepted, and nothing
    is stored twice."""
    a = await device("a")
    await say(a, "one", "two")
    with server.faults.lose_response(route=BATCH):
        await time_out(a.flush, lambda: len(items_on_server(server)) == 2)
        await vacuumed_copy(device, a, "a", "b")
    b = device.new("b")
    await say(b, "b")
    await say(a, "a")
    found = await assert_one_history(b, a)
    assert found[:2] == ["one", "two"]
    assert sorted(items_on_server(server)) == sorted(found) == ["a", "b", "one", "two"]
    assert_no_duplicates(server)


async def test_a_copy_that_resends_a_popped_item_does_not_restore_it(
    device: Devices, server: DevServer
) -> None:
    """An item that a copy holds unsent, while the original has sent, popped and deleted it, stays
    removed everywhere, and an audit deletes it from the server."""
    a = await device("a")
    await say(a, "keep", "drop")
    await vacuumed_copy(device, a, "a", "b")
    await a.sync()
    assert await a.pop_item() == text_message("drop")
    await a.sync()
    assert items_on_server(server) == ["keep"]
    b = device.new("b")
    await say(b, "b")
    assert await assert_one_history(b, a) == ["keep", "b"]
    assert await assert_one_history(device.new("late"), a, b) == ["keep", "b"]
    await b.audit()
    await sync_all(b, a)
    assert items_on_server(server) == ["keep", "b"]


async def test_a_copy_that_resends_cleared_items_does_not_restore_them(
    device: Devices, server: DevServer
) -> None:
    """Items that a copy holds unsent, while the original has sent and cleared them, stay removed
    everywhere. New items of the copy survive, and after an audit nothing else is on the server."""
    a = await device("a")
    await say(a, "one", "two")
    await vacuumed_copy(device, a, "a", "b")
    await a.sync()
    await a.clear_session()
    await say(a, "a")
    await a.sync()
    b = device.new("b")
    await say(b, "b")
    found = await assert_one_history(b, a)
    assert sorted(found) == ["a", "b"]
    assert await assert_one_history(device.new("late"), a, b) == found
    await b.audit()
    await sync_all(b, a)
    assert sorted(items_on_server(server)) == ["a", "b"]


# -- while the session writes -------------------------------------------------------------------


@pytest.mark.parametrize("way", ["vacuum", "backup"])
async def test_a_copy_taken_during_writes_has_whole_batches(
    device: Devices, server: DevServer, way: str
) -> None:
    """A copy taken by another connection while the session writes batches is the journal of some
    moment, with whole batches. Both journals go on, and nothing is lost."""
    a = await device("a")
    await say(a, "first")
    source, target = file_of(device, "a"), file_of(device, "b")
    copying = asyncio.ensure_future(
        asyncio.to_thread(vacuum_into, source, target)
        if way == "vacuum"
        else asyncio.to_thread(back_up, source, target, 4)
    )
    written = ["first"]
    for number in range(150):
        batch = [f"{number}.{part}" for part in range(3)]
        await a.add_items([text_message(word) for word in batch])
        written += batch
    await copying
    b = device.new("b", hydrate=False)
    held = texts(await b.get_items())
    assert held == written[: len(held)]
    assert len(held) % 3 == 1
    await say(b, "from b")
    await say(a, "from a")
    found = await assert_one_history(a, b)
    assert sorted(found) == sorted([*written, "from a", "from b"])
    assert [word for word in found if word != "from b"] == [*written, "from a"]
    assert sorted(items_on_server(server)) == sorted(found)
    assert_no_duplicates(server)


async def test_copies_taken_during_syncs_end_in_one_history(
    device: Devices, server: DevServer
) -> None:
    """Backups taken one after the other while the session writes, pops and syncs by itself are
    opened as devices, and all end in one history without a call."""
    a = await device("a", options=QUICK)
    copies = []
    added: set[str] = set()
    popped: set[str] = set()
    for number in range(4):
        taking = asyncio.ensure_future(
            asyncio.to_thread(back_up, file_of(device, "a"), file_of(device, f"copy{number}"), 8)
        )
        for step in range(20):
            await say(a, f"{number}.{step}")
            added.add(f"{number}.{step}")
            if step % 7 == 6:
                popped.update(texts([await a.pop_item()]))
        await taking
        copies.append(device.new(f"copy{number}", options=QUICK, hydrate=False))
        await say(copies[-1], f"copy {number}")
        added.add(f"copy {number}")
    found = await assert_one_history(a, *copies)
    assert len(popped) == 8
    assert sorted(found) == sorted(added - popped)
    for session in copies:
        await session.audit()
    assert sorted(items_on_server(server)) == sorted(found)


# -- a backup restored --------------------------------------------------------------------------


@pytest.mark.parametrize("frozen", [False, True], ids=["clock", "frozen-clock"])
async def test_a_restored_backup_gets_back_what_it_lost(
    device: Devices, server: DevServer, frozen: bool
) -> None:
    """After a sync a restored device has everything that it had synced after its backup, its new
    items overwrite nothing, and it agrees with the other device. This also holds with a stopped
    clock and equal times."""
    runtime = Runtime(wall_ms=lambda: 1_700_000_000_000) if frozen else Runtime()
    a, b = await device("a", runtime=runtime), await device("b")
    await say(a, "1", "2")
    await sync_all(a, b)
    await a.close()
    copy_file(file_of(device, "a"), file_of(device, "backup"))
    a = device.new("a", runtime=runtime)
    await say(a, "3", "4")
    await a.sync()
    await say(b, "b")
    await sync_all(a, b)
    await say(a, "5")
    await sync_all(a, b)
    before = await b.entries()
    await a.close()
    copy_file(file_of(device, "backup"), file_of(device, "a"))
    a = device.new("a", runtime=runtime)
    assert texts(await a.get_items()) == ["1", "2"]
    await say(a, "6", "7")
    found = await assert_one_history(a, b)
    assert sorted(found) == ["1", "2", "3", "4", "5", "6", "7", "b"]
    assert [word for word in found if word not in "67"] == [e.item["content"] for e in before]
    assert found.index("7") == found.index("6") + 1 > found.index("2") + 1
    assert sorted(items_on_server(server)) == sorted(found)
    assert len({entry.writer for entry in await a.entries()}) == 4
    assert_no_duplicates(server)


async def test_a_restored_backup_gets_back_its_own_removals(
    device: Devices, server: DevServer
) -> None:
    """A sync repeats the pops and clears that a device made after its backup, and does not change
    what it wrote since it was restored."""
    a, b = await device("a"), await device("b")
    await say(a, "1", "2", "3")
    await sync_all(a, b)
    await a.close()
    copy_file(file_of(device, "a"), file_of(device, "backup"))
    a = device.new("a")
    assert await a.pop_item() == text_message("3")
    await a.sync()
    await a.clear_session()
    await say(a, "4")
    await sync_all(a, b)
    await a.close()
    copy_file(file_of(device, "backup"), file_of(device, "a"))
    a = device.new("a")
    with server.faults.down():
        assert texts(await a.get_items()) == ["1", "2", "3"]
        await say(a, "5")
        assert await a.pop_item() == text_message("5")
        assert await a.pop_item() == text_message("3")
        await say(a, "6")
    assert await assert_one_history(a, b) == ["4", "6"]
    assert await assert_one_history(device.new("late"), b, a) == ["4", "6"]
    await a.audit()
    assert sorted(items_on_server(server)) == ["4", "6"]


async def test_a_backup_from_before_a_refusal_leaves_no_placeholder(
    device: Devices, server: DevServer
) -> None:
    """An operation was parked, and a device restored from an earlier backup sends it again. An
    audit on any device then deletes the leftover placeholder."""
    a, b = await device("a"), await device("b")
    await say(a, "1")
    with server.faults.down():  # so that closing does not send it
        await a.close()
    copy_file(file_of(device, "a"), file_of(device, "backup"))
    server.faults.status(400, route=BATCH, count=1)
    a = await device("a")
    assert a.status().parked == 1
    assert kinds_on_server(server) == ["void"]
    with server.faults.down():
        await a.close()
    copy_file(file_of(device, "backup"), file_of(device, "a"))
    a = await device("a")
    assert kinds_on_server(server) == ["append", "void"]
    assert (await b.audit()).forgotten == 1
    assert kinds_on_server(server) == ["append"]
    assert await assert_one_history(a, b, device.new("late")) == ["1"]


async def test_an_old_backup_restores_no_cleared_items(device: Devices, server: DevServer) -> None:
    """A backup from before a clear by another device shows the old items until it syncs, and an
    audit does not store them on the server again."""
    a, b = await device("a"), await device("b")
    await say(a, "1", "2")
    await sync_all(a, b)
    await vacuumed_copy(device, a, "a", "backup")
    await b.clear_session()
    await sync_all(b, a)
    assert kinds_on_server(server) == ["clear"]
    await a.close()
    copy_file(file_of(device, "backup"), file_of(device, "a"))
    a = device.new("a")
    assert texts(await a.get_items()) == ["1", "2"]
    await a.audit()
    assert await assert_one_history(a, b) == []
    assert items_on_server(server) == []


async def test_a_backup_restored_several_times_loses_nothing(
    device: Devices, server: DevServer
) -> None:
    """A device that is restored from the same backup several times, each time with new items, loses
    none of them."""
    a = await device("a")
    await say(a, "0")
    await a.close()
    copy_file(file_of(device, "a"), file_of(device, "backup"))
    for number in range(1, 5):
        copy_file(file_of(device, "backup"), file_of(device, "a"))
        a = device.new("a")
        await say(a, f"{number}")
        await a.sync()
        await a.close()
    a = device.new("a")
    found = await assert_one_history(a, device.new("late"))
    # The items after the backup come from devices that did not know of each other.
    assert (found[0], sorted(found)) == ("0", ["0", "1", "2", "3", "4"])
    assert_no_duplicates(server)


# -- copies of copies ---------------------------------------------------------------------------


@WAYS
async def test_a_copy_of_a_copy_ends_in_one_history(
    device: Devices, server: DevServer, copy: Copy
) -> None:
    """The original, a copy and a copy of that copy, each with its own items, pops and unsent
    operations, end in one history without duplicates."""
    a = await device("a")
    await say(a, "one", "two")
    a = await copy(device, a, "a", "b")
    b = device.new("b", hydrate=False)
    await say(b, "b1", "b2")
    b = await copy(device, b, "b", "c")
    c = device.new("c", hydrate=False)
    await say(c, "c1")
    assert await c.pop_item() == text_message("c1")
    assert await c.pop_item() == text_message("b2")
    await say(c, "c2")
    await say(b, "b3")
    await say(a, "a1")
    found = await assert_one_history(c, a, b)
    assert sorted(found) == ["a1", "b1", "b3", "c2", "one", "two"]
    assert found[:2] == ["one", "two"]
    assert found.index("b1") < found.index("b3")
    assert await assert_one_history(device.new("late"), a, b, c) == found
    await a.audit()  # "b2" was sent by the copy that did not know that it was popped
    assert sorted(items_on_server(server)) == sorted(found)
    assert_no_duplicates(server)


async def test_many_devices_from_one_image_end_in_one_history(
    device: Devices, server: DevServer
) -> None:
    """Eight devices that start from one image with unsent operations and sync together have one
    history with the items of each."""
    image = await device("image")
    await say(image, *(f"{number}" for number in range(10)))
    await image.close()
    fleet = []
    for number in range(8):
        copy_file(file_of(device, "image"), file_of(device, f"{number}"))
        fleet.append(device.new(f"{number}"))
        await say(fleet[-1], f"{number}.0", f"{number}.1")
    await asyncio.gather(*(session.sync(timeout=PATIENCE) for session in fleet))
    found = await assert_one_history(*fleet)
    assert found[:10] == [f"{number}" for number in range(10)]
    rest = [found[at : at + 2] for at in range(10, 26, 2)]
    assert sorted(rest) == [[f"{number}.0", f"{number}.1"] for number in range(8)]
    assert len(stored_ops(server)) == 26
    assert_no_duplicates(server)
