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
    in_vain,
    items_on,
    kinds_on,
    one_history,
    said,
    settle,
    texts,
    until,
)


async def say(session: CachedSession, *words: str) -> None:
    for word in words:
        await session.add_items([said(word)])


@pytest.mark.promise(number=4)
async def test_what_two_devices_said_apart_becomes_one_history(device: Devices) -> None:
    """Two devices that wrote apart show equal items, ranks and stamps once both have synced."""
    a, b = await device("a"), await device("b")
    await say(a, "a1", "a2")
    await say(b, "b1", "b2")
    assert sorted(await one_history(a, b)) == ["a1", "a2", "b1", "b2"]


@pytest.mark.promise(number=4)
@pytest.mark.parametrize("order", list(permutations("abc")))
async def test_the_order_of_syncing_changes_nothing(
    device: Devices, order: tuple[str, ...]
) -> None:
    """Three devices agree on one history, each device's words together, whoever syncs first."""
    sessions = {name: await device(name) for name in "abc"}
    for number in range(3):
        for name in "abc":
            await say(sessions[name], f"{name}{number}")
    found = await one_history(*(sessions[name] for name in order))
    assert [found[start : start + 3] for start in (0, 3, 6)] == sorted(
        ([f"{name}0", f"{name}1", f"{name}2"] for name in "abc"),
        key=lambda stretch: found.index(stretch[0]),
    )


async def test_runs_are_laid_one_after_the_other(device: Devices) -> None:
    """Turns that two devices took in alternation while apart are not shuffled into each other."""
    a, b = await device("a"), await device("b")
    for number in range(6):
        await say(a, f"a{number}")
        await say(b, f"b{number}")
    found = await one_history(a, b)
    assert "".join(word[0] for word in found) in ("aaaaaabbbbbb", "bbbbbbaaaaaa")
    assert len({entry.run for entry in await a.entries()}) == 2


async def test_an_answer_stays_after_what_it_answers(device: Devices) -> None:
    """What a device saw before it wrote sorts before what it wrote, back and forth."""
    a, b = await device("a"), await device("b")
    for number in range(4):
        for session, name in ((a, "a"), (b, "b")):
            await session.sync()
            await say(session, f"{name}{number}")
            await session.sync()
    found = await one_history(a, b)
    assert found == [f"{name}{number}" for number in range(4) for name in "ab"]


async def test_a_clock_that_lies_keeps_cause_before_effect(device: Devices) -> None:
    """An answer written by a device whose clock stands in 1970 still comes after its question."""
    a, b = await device("a"), await device("b", runtime=Runtime(wall_ms=lambda: 1000))
    await say(a, "question")
    await settle(a, b)
    await say(b, "answer")
    await settle(b, a)
    await say(a, "thanks")
    assert await one_history(a, b) == ["question", "answer", "thanks"]


@pytest.mark.promise(number=5)
async def test_batches_stay_contiguous(device: Devices) -> None:
    """Batches that two devices added at the same time are contiguous in the one history."""
    a, b = await device("a"), await device("b")
    for number in range(4):
        for session, name in ((a, "a"), (b, "b")):
            await session.add_items([said(f"{name}{number}.{part}") for part in range(5)])
    found = await one_history(a, b)
    batches = [found[start : start + 5] for start in range(0, len(found), 5)]
    assert all([word.split(".")[1] for word in batch] == list("01234") for batch in batches)
    assert len({batch[0].split(".")[0] for batch in batches}) == 8


async def test_a_pop_reaches_the_other_device(device: Devices) -> None:
    """An item that one device popped disappears on the device that wrote it, and on the server."""
    a, b = await device("a"), await device("b")
    await say(a, "keep", "drop")
    await settle(a, b)
    assert await b.pop_item() == said("drop")
    assert await one_history(b, a) == ["keep"]
    assert items_on(device.server) == ["keep"]


async def test_a_clear_reaches_the_other_device(device: Devices) -> None:
    """A clear empties the other device too, and has the server forget the items."""
    a, b = await device("a"), await device("b")
    await say(a, "one", "two")
    await settle(a, b)
    await b.clear_session()
    assert await one_history(b, a) == []
    assert kinds_on(device.server) == ["clear"]


@pytest.mark.promise(number=6)
async def test_an_append_survives_a_concurrent_clear(device: Devices) -> None:
    """A clear removes what its device had seen and leaves what another one added meanwhile."""
    a, b = await device("a"), await device("b")
    await say(a, "old")
    await settle(a, b)
    await say(a, "new")
    await b.clear_session()
    assert await one_history(a, b) == ["new"]
    assert items_on(device.server) == ["new"]


@pytest.mark.promise(number=6)
async def test_clears_pops_and_words_at_the_same_time(device: Devices) -> None:
    """Two devices clear and a third one pops while apart, each having said something of its own
    that the others had not seen: what is left is what was said after the clears, and what no clear
    had seen."""
    a, b, c = [await device(name) for name in "abc"]
    for number in range(4):
        await say(a, f"old {number}")
    await settle(a, b, c)
    await say(a, "a before")
    await a.clear_session()
    await say(a, "a after")
    await say(b, "b before")
    await b.clear_session()
    await say(b, "b after")
    assert await c.pop_item() == said("old 3")
    await say(c, "c")
    await say(c, "popped")
    assert await c.pop_item() == said("popped")
    found = await one_history(c, a, b, device.new("late"))
    assert sorted(found) == ["a after", "b after", "c"]
    assert sorted(items_on(device.server)) == sorted(found)


async def test_a_process_that_dies_before_the_forgetting_leaves_it_to_the_next(
    device: Devices,
) -> None:
    """The server has a clear and still holds what it cleared when the process ends: the next
    opening of the journal has it forgotten, without being told."""
    a = await device("a")
    await say(a, "one", "two", "three")
    await a.sync()
    await a.clear_session()
    with device.server.faults.lose_request(route=FORGET):
        await in_vain(a.sync, lambda: "clear" in kinds_on(device.server))
        assert kinds_on(device.server) == ["append", "append", "append", "clear"]
        await a.close()
    b = device.new("a", options=QUICK)
    assert await b.get_items() == []
    await until(lambda: kinds_on(device.server) == ["clear"])


async def test_words_after_a_clear_are_kept(device: Devices) -> None:
    """The device that clears goes on writing, and the other one sees only what came after."""
    a, b = await device("a"), await device("b")
    await say(a, "old")
    await settle(a, b)
    await b.clear_session()
    await say(b, "new")
    assert await one_history(b, a, device.new("c")) == ["new"]


async def test_both_may_pop_the_same_item(device: Devices) -> None:
    """Two local pops of one item while apart remove it once, and nothing else."""
    a, b = await device("a"), await device("b")
    await say(a, "one", "two", "three")
    await settle(a, b)
    assert await a.pop_item() == await b.pop_item() == said("three")
    assert await one_history(a, b) == ["one", "two"]


async def test_an_item_popped_elsewhere_is_not_popped_again(device: Devices) -> None:
    """After a sync a device pops the item below the one that another device has popped."""
    a, b = await device("a"), await device("b")
    await say(a, "one", "two")
    await settle(a, b)
    await a.pop_item()
    await settle(a, b)
    assert await b.pop_item() == said("one")
    assert await one_history(a, b) == []


async def test_a_pop_wins_over_a_concurrent_clear_of_the_same(device: Devices) -> None:
    """A pop and a clear of the same item at the same time leave it removed everywhere."""
    a, b = await device("a"), await device("b")
    await say(a, "one", "two")
    await settle(a, b)
    await a.pop_item()
    await b.clear_session()
    assert await one_history(a, b, device.new("c")) == []


async def test_clearing_what_was_never_sent(device: Devices, server: DevServer) -> None:
    """Items cleared before they were sent never reach the server, and leave no gap elsewhere."""
    a, b = await device("a"), await device("b")
    await say(a, "secret one", "secret two")
    await a.clear_session()
    await say(a, "public")
    assert await one_history(a, b) == ["public"]
    assert not any("secret" in str(memory) for memory in server.memories(AGENT))


async def test_popping_what_was_never_sent(device: Devices, server: DevServer) -> None:
    """An item popped before its append was sent never reaches the server; its neighbours do."""
    a, b = await device("a"), await device("b")
    await a.add_items([said("one"), said("two"), said("secret")])
    await a.pop_item()
    await say(a, "secret too")
    await a.pop_item()
    await say(a, "three")
    assert await one_history(a, b) == ["one", "two", "three"]
    assert not any("secret" in str(memory) for memory in server.memories(AGENT))


async def test_a_batch_without_its_popped_item_still_shows(
    device: Devices, server: DevServer
) -> None:
    """A device that comes after a pop's memory was forgotten shows the rest of its batch."""
    a, b = await device("a"), await device("b")
    await a.add_items([said("one"), said("two"), said("three")])
    await settle(a, b)
    assert await b.pop_item() == said("three")
    await settle(b, a)
    assert items_on(server) == ["one", "two"]
    assert await one_history(device.new("c"), a, b) == ["one", "two"]


async def test_a_wholly_popped_batch_leaves_no_gap(device: Devices) -> None:
    """Popping every item of a batch leaves nothing missing on a device that comes later."""
    a, b = await device("a"), await device("b")
    await a.add_items([said("one"), said("two")])
    await say(a, "three")
    await settle(a, b)
    await b.pop_item()
    await settle(b, a)
    await a.pop_item()
    await b.sync()
    await a.pop_item()
    await say(b, "four")
    found = await one_history(a, b, device.new("c"))
    assert found == ["four"]


async def test_a_late_device_finds_nothing_missing_after_a_clear(device: Devices) -> None:
    """A device that comes after a clear was forgotten on the server finds no gap in it."""
    a = await device("a")
    for number in range(10):
        await say(a, f"{number}")
    await a.sync()
    await a.clear_session()
    await say(a, "after")
    await a.sync()
    late = device.new("late")
    assert await one_history(late, a) == ["after"]


async def test_entries_show_their_sync_state(device: Devices) -> None:
    """An entry is pending until the server has it, and acked then."""
    a = await device("a")
    await say(a, "one")
    await a.sync()
    await say(a, "two")
    assert [entry.sync_state for entry in await a.entries()] == ["acked", "pending"]
    await a.flush(timeout=PATIENCE)
    assert [entry.sync_state for entry in await a.entries()] == ["acked", "acked"]


async def test_devices_keep_each_other_up_to_date_by_themselves(device: Devices) -> None:
    """Without any call to sync, what one device adds, pops and clears shows on the other soon."""
    a, b = await device("a", options=QUICK), await device("b", options=QUICK)

    async def b_shows(*expected: str) -> None:
        async def shows() -> bool:
            return texts(await b.get_items()) == list(expected)

        await until(shows)

    await say(a, "one", "two")
    await b_shows("one", "two")
    await a.pop_item()
    await b_shows("one")
    await b.clear_session()
    await until(lambda: a.status().items == 0)


@pytest.mark.promise(number=4)
@pytest.mark.parametrize("seed", range(6))
async def test_any_mixture_of_changes_and_syncs_converges(device: Devices, seed: int) -> None:
    """After random adds, pops, clears and syncs on three devices, all show exactly what was added
    and neither popped nor cleared by somebody who had seen it."""
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
            await session.add_items([said(word) for word in batch])
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
    found = await one_history(*sessions.values(), device.new("late"))
    assert sorted(found) == sorted(added - removed)
    assert sorted(items_on(device.server)) == sorted(added - removed)
