from __future__ import annotations

import random
from itertools import permutations

import pytest

from cached_session import CachedSession
from cached_session.devserver import DevServer
from cached_session.runtime import Runtime
from tests.replication.devices import (
    AGENT,
    FORGET,
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
    wait_until,
)


async def say(session: CachedSession, *words: str) -> None:
    for word in words:
        await session.add_items([text_message(word)])


@pytest.mark.promise(number=4)
async def test_separate_writes_of_two_devices_become_one_history(device: Devices) -> None:
    """Two devices that wrote separately show equal items, ranks and stamps once both have
    synced."""
    a, b = await device("a"), await device("b")
    await say(a, "a1", "a2")
    await say(b, "b1", "b2")
    assert sorted(await assert_one_history(a, b)) == ["a1", "a2", "b1", "b2"]


@pytest.mark.promise(number=4)
@pytest.mark.parametrize("order", list(permutations("abc")))
async def test_the_order_of_syncs_changes_nothing(device: Devices, order: tuple[str, ...]) -> None:
    """Three devices agree on one history with each device's items contiguous, whichever syncs
    first."""
    sessions = {name: await device(name) for name in "abc"}
    for number in range(3):
        for name in "abc":
            await say(sessions[name], f"{name}{number}")
    found = await assert_one_history(*(sessions[name] for name in order))
    assert [found[start : start + 3] for start in (0, 3, 6)] == sorted(
        ([f"{name}0", f"{name}1", f"{name}2"] for name in "abc"),
        key=lambda stretch: found.index(stretch[0]),
    )


async def test_runs_are_not_interleaved(device: Devices) -> None:
    """Alternating turns of two separate devices are not interleaved in the history."""
    a, b = await device("a"), await device("b")
    for number in range(6):
        await say(a, f"a{number}")
        await say(b, f"b{number}")
    found = await assert_one_history(a, b)
    assert "".join(word[0] for word in found) in ("aaaaaabbbbbb", "bbbbbbaaaaaa")
    assert len({entry.run for entry in await a.entries()}) == 2


async def test_an_answer_stays_after_its_question(device: Devices) -> None:
    """Items that a device saw before it wrote sort before what it wrote, in both directions."""
    a, b = await device("a"), await device("b")
    for number in range(4):
        for session, name in ((a, "a"), (b, "b")):
            await session.sync()
            await say(session, f"{name}{number}")
            await session.sync()
    found = await assert_one_history(a, b)
    assert found == [f"{name}{number}" for number in range(4) for name in "ab"]


async def test_a_wrong_clock_keeps_cause_before_effect(device: Devices) -> None:
    """An answer of a device whose clock is in 1970 comes after its question."""
    a, b = await device("a"), await device("b", runtime=Runtime(wall_ms=lambda: 1000))
    await say(a, "question")
    await sync_all(a, b)
    await say(b, "answer")
    await sync_all(b, a)
    await say(a, "thanks")
    assert await assert_one_history(a, b) == ["question", "answer", "thanks"]


@pytest.mark.promise(number=5)
async def test_batches_stay_contiguous(device: Devices) -> None:
    """Batches that two devices added concurrently are contiguous in the one history."""
    a, b = await device("a"), await device("b")
    for number in range(4):
        for session, name in ((a, "a"), (b, "b")):
            await session.add_items([text_message(f"{name}{number}.{part}") for part in range(5)])
    found = await assert_one_history(a, b)
    batches = [found[start : start + 5] for start in range(0, len(found), 5)]
    assert all([word.split(".")[1] for word in batch] == list("01234") for batch in batches)
    assert len({batch[0].split(".")[0] for batch in batches}) == 8


async def test_a_pop_reaches_the_other_device(device: Devices) -> None:
    """An item that one device popped disappears on the device that wrote it, and on the server."""
    a, b = await device("a"), await device("b")
    await say(a, "keep", "drop")
    await sync_all(a, b)
    assert await b.pop_item() == text_message("drop")
    assert await assert_one_history(b, a) == ["keep"]
    assert items_on_server(device.server) == ["keep"]


async def test_a_clear_reaches_the_other_device(device: Devices) -> None:
    """A clear empties the other device too, and deletes the items on the server."""
    a, b = await device("a"), await device("b")
    await say(a, "one", "two")
    await sync_all(a, b)
    await b.clear_session()
    assert await assert_one_history(b, a) == []
    assert kinds_on_server(device.server) == ["clear"]


@pytest.mark.promise(number=6)
async def test_an_append_survives_a_concurrent_clear(device: Devices) -> None:
    """A clear removes the items that its device had seen, and keeps concurrent ones of another
    device."""
    a, b = await device("a"), await device("b")
    await say(a, "old")
    await sync_all(a, b)
    await say(a, "new")
    await b.clear_session()
    assert await assert_one_history(a, b) == ["new"]
    assert items_on_server(device.server) == ["new"]


@pytest.mark.promise(number=6)
async def test_concurrent_clears_pops_and_appends_keep_only_unseen_items(device: Devices) -> None:
    """Two devices clear and a third one pops while separate, each with items that the others had
    not seen. The items that are left were added after the clears or were not seen by any of
    them."""
    a, b, c = [await device(name) for name in "abc"]
    for number in range(4):
        await say(a, f"old {number}")
    await sync_all(a, b, c)
    await say(a, "a before")
    await a.clear_session()
    await say(a, "a after")
    await say(b, "b before")
    await b.clear_session()
    await say(b, "b after")
    assert await c.pop_item() == text_message("old 3")
    await say(c, "c")
    await say(c, "popped")
    assert await c.pop_item() == text_message("popped")
    found = await assert_one_history(c, a, b, device.new("late"))
    assert sorted(found) == ["a after", "b after", "c"]
    assert sorted(items_on_server(device.server)) == sorted(found)


async def test_deletions_of_a_closed_process_are_made_by_the_next(
    device: Devices,
) -> None:
    """The server has a clear and still holds the cleared items when the process ends. The next
    opening of the journal deletes them without a call."""
    a = await device("a")
    await say(a, "one", "two", "three")
    await a.sync()
    await a.clear_session()
    with device.server.faults.lose_request(route=FORGET):
        await time_out(a.sync, lambda: "clear" in kinds_on_server(device.server))
        assert kinds_on_server(device.server) == ["append", "append", "append", "clear"]
        await a.close()
    b = device.new("a", options=QUICK)
    assert await b.get_items() == []
    await wait_until(lambda: kinds_on_server(device.server) == ["clear"])


async def test_items_after_a_clear_are_kept(device: Devices) -> None:
    """The device that clears continues to write, and the other one sees only the later items."""
    a, b = await device("a"), await device("b")
    await say(a, "old")
    await sync_all(a, b)
    await b.clear_session()
    await say(b, "new")
    assert await assert_one_history(b, a, device.new("c")) == ["new"]


async def test_both_devices_may_pop_the_same_item(device: Devices) -> None:
    """Two concurrent local pops of one item remove it once, and nothing else."""
    a, b = await device("a"), await device("b")
    await say(a, "one", "two", "three")
    await sync_all(a, b)
    assert await a.pop_item() == await b.pop_item() == text_message("three")
    assert await assert_one_history(a, b) == ["one", "two"]


async def test_an_item_popped_elsewhere_is_not_popped_again(device: Devices) -> None:
    """After a sync a device pops the item below the one that another device has popped."""
    a, b = await device("a"), await device("b")
    await say(a, "one", "two")
    await sync_all(a, b)
    await a.pop_item()
    await sync_all(a, b)
    assert await b.pop_item() == text_message("one")
    assert await assert_one_history(a, b) == []


async def test_a_concurrent_pop_and_clear_of_an_item_remove_it(device: Devices) -> None:
    """A concurrent pop and clear of the same item leave it removed everywhere."""
    a, b = await device("a"), await device("b")
    await say(a, "one", "two")
    await sync_all(a, b)
    await a.pop_item()
    await b.clear_session()
    assert await assert_one_history(a, b, device.new("c")) == []


async def test_clearing_unsent_items_leaves_no_gap(device: Devices, server: DevServer) -> None:
    """Items cleared before they were sent never reach the server, and leave no gap elsewhere."""
    a, b = await device("a"), await device("b")
    await say(a, "secret one", "secret two")
    await a.clear_session()
    await say(a, "public")
    assert await assert_one_history(a, b) == ["public"]
    assert not any("secret" in str(memory) for memory in server.memories(AGENT))


async def test_a_popped_unsent_item_is_never_sent(device: Devices, server: DevServer) -> None:
    """An item popped before its append was sent never reaches the server, and the items beside it
    do."""
    a, b = await device("a"), await device("b")
    await a.add_items([text_message("one"), text_message("two"), text_message("secret")])
    await a.pop_item()
    await say(a, "secret too")
    await a.pop_item()
    await say(a, "three")
    assert await assert_one_history(a, b) == ["one", "two", "three"]
    assert not any("secret" in str(memory) for memory in server.memories(AGENT))


async def test_a_batch_without_its_popped_item_is_shown(device: Devices, server: DevServer) -> None:
    """A device that comes after a pop's memory was deleted shows the rest of its batch."""
    a, b = await device("a"), await device("b")
    await a.add_items([text_message("one"), text_message("two"), text_message("three")])
    await sync_all(a, b)
    assert await b.pop_item() == text_message("three")
    await sync_all(b, a)
    assert items_on_server(server) == ["one", "two"]
    assert await assert_one_history(device.new("c"), a, b) == ["one", "two"]


async def test_a_completely_popped_batch_leaves_no_gap(device: Devices) -> None:
    """After every item of a batch was popped, a new device misses nothing."""
    a, b = await device("a"), await device("b")
    await a.add_items([text_message("one"), text_message("two")])
    await say(a, "three")
    await sync_all(a, b)
    await b.pop_item()
    await sync_all(b, a)
    await a.pop_item()
    await b.sync()
    await a.pop_item()
    await say(b, "four")
    found = await assert_one_history(a, b, device.new("c"))
    assert found == ["four"]


async def test_a_new_device_finds_no_gap_after_a_clear(device: Devices) -> None:
    """A device that comes after the cleared items were deleted on the server finds no gap."""
    a = await device("a")
    for number in range(10):
        await say(a, f"{number}")
    await a.sync()
    await a.clear_session()
    await say(a, "after")
    await a.sync()
    late = device.new("late")
    assert await assert_one_history(late, a) == ["after"]


async def test_entries_show_their_sync_state(device: Devices) -> None:
    """An entry is pending until the server has it, and acked then."""
    a = await device("a")
    await say(a, "one")
    await a.sync()
    await say(a, "two")
    assert [entry.sync_state for entry in await a.entries()] == ["acked", "pending"]
    await a.flush(timeout=PATIENCE)
    assert [entry.sync_state for entry in await a.entries()] == ["acked", "acked"]


async def test_devices_update_each_other_without_a_call(device: Devices) -> None:
    """Items that one device adds, pops and clears change on the other soon, without a call to
    sync."""
    a, b = await device("a", options=QUICK), await device("b", options=QUICK)

    async def b_shows(*expected: str) -> None:
        async def shows() -> bool:
            return texts(await b.get_items()) == list(expected)

        await wait_until(shows)

    await say(a, "one", "two")
    await b_shows("one", "two")
    await a.pop_item()
    await b_shows("one")
    await b.clear_session()
    await wait_until(lambda: a.status().items == 0)


@pytest.mark.promise(number=4)
@pytest.mark.parametrize("seed", range(6))
async def test_random_changes_and_syncs_converge(device: Devices, seed: int) -> None:
    """After random adds, pops, clears and syncs on three devices, all show exactly the added items
    that were neither popped nor cleared by a device that had seen them."""
    chance = random.Random(seed)
    names = ["a", "b", "c"]
    sessions = {name: await device(name) for name in names}
    added: set[str] = set()
    removed: set[str] = set()
    for step in range(60):
        name = chance.choice(names)
        session = sessions[name]
        what = chance.choices(["add", "pop", "clear", "sync"], [8, 3, 1, 6])[0]
        if what == "add":
            batch = [f"{name}{step}.{part}" for part in range(chance.randint(1, 4))]
            await session.add_items([text_message(word) for word in batch])
            added.update(batch)
        elif what == "pop":
            item = await session.pop_item()
            if item is not None:
                removed.add(texts([item])[0])
        elif what == "clear":
            removed.update(texts(await session.get_items()))
            await session.clear_session()
        else:
            await session.sync(timeout=PATIENCE)
    found = await assert_one_history(*sessions.values(), device.new("late"))
    assert sorted(found) == sorted(added - removed)
    assert sorted(items_on_server(device.server)) == sorted(added - removed)
