from __future__ import annotations

from dataclasses import replace

import pytest

from cached_session import CachedSession, InvalidArgument, SyncError
from cached_session.devserver import DevServer, Modes
from tests.replication.devices import (
    AGENT,
    BATCH,
    MANUAL,
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

pytestmark = pytest.mark.promise(number=7)

STRICT = Modes(metadata_max_bytes=2000)
"""A server that takes small items only: what is larger is refused for good, by its content."""
HUGE = "x" * 5000


async def talk(session: CachedSession, count: int, *, huge_at: int) -> list[str]:
    """Say many things of which one is refused; what is not."""
    good = []
    for number in range(count):
        text = HUGE if number == huge_at else f"{number}"
        await session.add_items([said(text)])
        good += [] if text == HUGE else [text]
    return good


@pytest.mark.parametrize("huge_at", [0, 137, 299])
async def test_one_refused_operation_is_found_and_parked(
    device: Devices, server: DevServer, huge_at: int
) -> None:
    """One operation among 300 that the server refuses for good is found in a logarithm of
    requests, parked with its reason, and holds nothing back."""
    server.modes = STRICT
    a, b = await device("a"), await device("b")
    good = await talk(a, 300, huge_at=huge_at)
    report = await a.sync(timeout=PATIENCE)
    assert (report.pushed, report.parked, report.pending) == (299, 1, 0)
    assert server.requests.count(BATCH) <= 2 * 9 + 4
    (parked,) = await a.parked()
    assert parked.items == [said(HUGE)]
    assert "metadata" in parked.error
    assert parked.dot.counter == huge_at + 1
    assert len(await a.get_items()) == 300
    assert items_on(server) == good
    await b.sync()
    assert texts(await b.get_items()) == good


async def test_a_parked_operation_is_an_explained_gap(device: Devices, server: DevServer) -> None:
    """Another device is told that the gap is its writer's, and does not report it as absent."""
    server.modes = STRICT
    a = await device("a")
    b = await device("b", options=QUICK)
    await talk(a, 3, huge_at=1)
    await a.sync(timeout=PATIENCE)
    assert kinds_on(server) == ["append", "append", "void"]

    async def shows() -> bool:
        return texts(await b.get_items()) == ["0", "2"]

    await until(shows)
    late = device.new("late")
    report = await late.sync()
    assert (report.absent, late.status().absent, b.status().absent) == (0, 0, 0)
    assert HUGE not in str(server.memories(AGENT))


async def test_flush_says_that_something_is_parked(device: Devices, server: DevServer) -> None:
    """A flush that had to leave something behind raises, and names the way out."""
    server.modes = STRICT
    a = await device("a")
    await talk(a, 2, huge_at=0)
    with pytest.raises(SyncError, match="retry_parked"):
        await a.flush(timeout=PATIENCE)
    assert a.status().parked == 1


async def test_a_retried_operation_takes_its_place(device: Devices, server: DevServer) -> None:
    """Once the server takes it, a parked operation arrives by retry in its place in the history,
    and its placeholder goes."""
    server.modes = STRICT
    a, b = await device("a"), await device("b")
    await talk(a, 3, huge_at=1)
    await settle(a, b)
    assert await a.retry_parked() == 1
    await a.sync(timeout=PATIENCE)
    assert a.status().parked == 1
    server.modes = Modes()
    assert await a.retry_parked([tuple((await a.parked())[0].dot)]) == 1
    assert a.status().parked == 0
    assert a.status().pending == 1
    assert await one_history(a, b, device.new("late")) == ["0", HUGE, "2"]
    assert kinds_on(server) == ["append"] * 3


async def test_a_dropped_operation_is_gone_everywhere(device: Devices, server: DevServer) -> None:
    """A parked operation that is dropped leaves the local history, so that all are equal."""
    server.modes = STRICT
    a, b = await device("a"), await device("b")
    await talk(a, 3, huge_at=1)
    await settle(a, b)
    with pytest.raises(InvalidArgument):
        await a.drop_parked()
    (parked,) = await a.parked()
    assert await a.drop_parked(("aaaaaaaa", 1)) == 0
    assert await a.drop_parked(parked.dot) == 1
    assert await a.parked() == []
    await a.add_items([said("3")])
    assert await one_history(a, b, device.new("late")) == ["0", "2", "3"]


async def test_a_partly_stored_parked_batch_is_an_explained_gap(
    device: Devices, server: DevServer
) -> None:
    """Of a batch with one item that the server refuses it may hold others: another device, however
    often it looks for the rest, is told that its writer has parked it."""
    server.modes = STRICT
    impatient = replace(MANUAL, hole_patience=0.0)
    a, b = await device("a"), await device("b", options=impatient)
    await a.add_items([said("one"), said(HUGE), said("three")])
    await a.add_items([said("four")])
    await a.sync(timeout=PATIENCE)
    assert kinds_on(server) == ["append", "append", "void"]
    late = device.new("late", options=impatient)
    for session in (b, late):
        for _ in range(3):
            await session.sync()
            assert texts(await session.get_items()) == ["four"]
            assert session.status().absent == 0


async def test_what_is_given_up_comes_back_without_what_was_popped(
    device: Devices, server: DevServer
) -> None:
    """Of a batch stored in part the refused item is popped, so that others show the rest; whoever
    gives it up then shows the rest, too, and waits for no item that nobody will send."""
    server.modes = STRICT
    a, b = await device("a"), await device("b")
    await a.add_items([said("one"), said(HUGE)])
    await a.sync(timeout=PATIENCE)
    assert await a.pop_item() == said(HUGE)
    await settle(a, b)
    assert texts(await b.get_items()) == ["one"]
    (parked,) = await a.parked()
    assert await a.drop_parked(parked.dot) == 1
    assert await one_history(a, b, device.new("late")) == ["one"]


async def test_what_is_refused_and_popped_is_not_missed(device: Devices, server: DevServer) -> None:
    """All that an operation has was popped, and its placeholder stays: it is never absent, also
    while another one is looked for."""
    server.modes = STRICT
    a, b = await device("a"), await device("b", options=replace(MANUAL, hole_patience=0.0))
    await a.add_items([said("one"), said(HUGE)])
    await a.add_items([said(HUGE)])
    await a.sync(timeout=PATIENCE)
    assert await a.pop_item() == said(HUGE)
    await a.sync(timeout=PATIENCE)
    assert kinds_on(server) == ["append", "pop", "void", "void"]
    for _ in range(3):
        assert (await b.sync()).absent == 0
        assert b.status().absent == 0
    assert await b.get_items() == []


async def test_a_placeholder_that_the_server_lost_is_put_back(
    device: Devices, server: DevServer
) -> None:
    """An audit stores again what explains a parked operation, and leaves it alone where it is."""
    server.modes = STRICT
    impatient = replace(MANUAL, hole_patience=0.0)
    a = await device("a")
    await talk(a, 2, huge_at=0)
    await a.sync(timeout=PATIENCE)
    server.evict(AGENT, lambda memory: memory["metadata"]["cs_op"] == "void")
    b = await device("b", options=impatient)
    assert b.status().absent == 1
    assert (await a.audit()).healed == 1
    assert kinds_on(server) == ["append", "void"]
    assert (await a.audit()).healed == 0
    await b.sync()
    assert b.status().absent == 0
    server.modes = Modes()
    await a.retry_parked()
    assert await one_history(a, b, device.new("late")) == [HUGE, "1"]
    assert kinds_on(server) == ["append", "append"]


async def test_what_is_dropped_and_held_all_the_same_comes_back(
    device: Devices, server: DevServer
) -> None:
    """An operation that arrived without an answer and was refused when it was sent again is on
    other devices: dropped, it is on all of them soon, however far down the listing it stands."""
    short = replace(MANUAL, first_page_size=5, page_size=5)
    a, b = await device("a", options=short), await device("b")
    await a.add_items([said("the one")])
    server.faults.lose_response(route=BATCH, count=1)
    server.faults.status(400, route=BATCH, skip=1, count=1)
    await a.sync(timeout=PATIENCE)
    (parked,) = await a.parked()
    for number in range(30):
        server.clock.advance(60)
        await a.add_items([said(f"{number}")])
        await settle(a, b)
    assert await a.drop_parked(parked.dot) == 1
    assert len(await a.get_items()) == 30
    expected = ["the one", *(f"{number}" for number in range(30))]
    assert await one_history(b, a, device.new("late")) == expected


async def test_a_parked_batch_stays_whole(device: Devices, server: DevServer) -> None:
    """A batch of which one item is refused is parked whole and shows elsewhere not at all."""
    server.modes = STRICT
    a, b = await device("a"), await device("b")
    await a.add_items([said("one"), said(HUGE), said("three")])
    await a.add_items([said("four")])
    await a.sync(timeout=PATIENCE)
    await b.sync()
    assert texts(await b.get_items()) == ["four"]
    assert b.status().absent == 0
    (parked,) = await a.parked()
    assert len(parked.items) == 3
    server.modes = Modes()
    await a.retry_parked()
    assert await one_history(a, b) == ["one", HUGE, "three", "four"]


async def test_a_popped_item_of_a_parked_operation(device: Devices, server: DevServer) -> None:
    """Popping the refused item and retrying sends what is left, and nothing of it."""
    server.modes = STRICT
    a, b = await device("a"), await device("b")
    await a.add_items([said("one"), said(HUGE)])
    await a.sync(timeout=PATIENCE)
    assert await a.pop_item() == said(HUGE)
    await a.sync(timeout=PATIENCE)
    assert a.status().parked == 1
    await a.retry_parked()
    assert await one_history(a, b, device.new("late")) == ["one"]
    assert HUGE not in str(server.memories(AGENT))


async def test_clearing_what_is_parked(device: Devices, server: DevServer) -> None:
    """Clearing a session removes its parked operations from the history too, for all devices."""
    server.modes = STRICT
    a, b = await device("a"), await device("b")
    await talk(a, 3, huge_at=1)
    await settle(a, b)
    await a.clear_session()
    await a.add_items([said("after")])
    await settle(a, b)
    assert texts(await a.get_items()) == texts(await b.get_items()) == ["after"]


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_a_server_that_refuses_everything_parks_nothing(
    device: Devices, server: DevServer, status: int
) -> None:
    """Where even a placeholder is refused it is not the operation that is at fault: nothing is
    parked, and everything arrives when the server changes its mind."""
    a = await device("a")
    fault = server.faults.status(status, route=BATCH)
    for number in range(20):
        await a.add_items([said(str(number))])
    await in_vain(a.sync, lambda: "refuses everything" in str(a.status().last_error))
    assert (a.status().pending, a.status().parked) == (20, 0)
    fault.remove()
    assert await one_history(a, device.new("b")) == [str(number) for number in range(20)]


async def test_a_refusal_while_the_placeholder_is_lost(device: Devices, server: DevServer) -> None:
    """A placeholder that gets lost is sent again before the operation counts as parked."""
    server.modes = STRICT
    a, b = await device("a", options=MANUAL), await device("b")
    await talk(a, 1, huge_at=0)
    server.faults.lose_response(route=BATCH, skip=1, count=1)
    await a.sync(timeout=PATIENCE)
    assert a.status().parked == 1
    assert kinds_on(server) == ["void"]
    await b.sync()
    assert b.status().absent == 0


async def test_parked_work_survives_a_restart(device: Devices, server: DevServer) -> None:
    """What is parked is still parked, readable and retried after the journal was opened anew."""
    server.modes = STRICT
    a = await device("a")
    await talk(a, 2, huge_at=0)
    await a.sync(timeout=PATIENCE)
    await a.close()
    again = device.new("a")
    assert [parked.items for parked in await again.parked()] == [[said(HUGE)]]
    assert again.status().parked == 1
    server.modes = Modes()
    await again.retry_parked()
    assert await one_history(again, device.new("b")) == [HUGE, "1"]
