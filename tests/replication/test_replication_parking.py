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
    assert_one_history,
    items_on_server,
    kinds_on_server,
    sync_all,
    text_message,
    texts,
    time_out,
    wait_until,
)

pytestmark = pytest.mark.promise(number=7)

STRICT = Modes(metadata_max_bytes=2000)
"""A server with a limit on the size of an item: it refuses larger ones permanently."""
HUGE = "x" * 5000


async def add_with_one_refused(session: CachedSession, count: int, *, huge_at: int) -> list[str]:
    """Add many items of which one is refused, and return the others."""
    good = []
    for number in range(count):
        text = HUGE if number == huge_at else f"{number}"
        await session.add_items([text_message(text)])
        good += [] if text == HUGE else [text]
    return good


@pytest.mark.parametrize("huge_at", [0, 137, 299])
async def test_one_refused_operation_is_found_and_parked(
    device: Devices, server: DevServer, huge_at: int
) -> None:
    """One operation among 300 that the server refuses permanently is found in a logarithmic number
    of requests, parked with its reason, and stops no other."""
    server.modes = STRICT
    a, b = await device("a"), await device("b")
    good = await add_with_one_refused(a, 300, huge_at=huge_at)
    report = await a.sync(timeout=PATIENCE)
    assert (report.pushed, report.parked, report.pending) == (299, 1, 0)
    assert server.requests.count(BATCH) <= 2 * 9 + 4
    (parked,) = await a.parked()
    assert parked.items == [text_message(HUGE)]
    assert "metadata" in parked.error
    assert parked.dot.counter == huge_at + 1
    assert len(await a.get_items()) == 300
    assert items_on_server(server) == good
    await b.sync()
    assert texts(await b.get_items()) == good


async def test_a_parked_operation_is_an_explained_gap(device: Devices, server: DevServer) -> None:
    """Another device learns that its writer parked the operation, and does not report it as
    absent."""
    server.modes = STRICT
    a = await device("a")
    b = await device("b", options=QUICK)
    await add_with_one_refused(a, 3, huge_at=1)
    await a.sync(timeout=PATIENCE)
    assert kinds_on_server(server) == ["append", "append", "void"]

    async def shows() -> bool:
        return texts(await b.get_items()) == ["0", "2"]

    await wait_until(shows)
    late = device.new("late")
    report = await late.sync()
    assert (report.absent, late.status().absent, b.status().absent) == (0, 0, 0)
    assert HUGE not in str(server.memories(AGENT))


async def test_flush_raises_for_a_parked_operation(device: Devices, server: DevServer) -> None:
    """A flush that leaves an operation behind raises, and names the commands to use."""
    server.modes = STRICT
    a = await device("a")
    await add_with_one_refused(a, 2, huge_at=0)
    with pytest.raises(SyncError, match="retry_parked"):
        await a.flush(timeout=PATIENCE)
    assert a.status().parked == 1


async def test_a_retried_operation_arrives_at_its_position(
    device: Devices, server: DevServer
) -> None:
    """Once the server accepts it, a retry sends a parked operation, which takes its position in the
    history, and its placeholder is deleted."""
    server.modes = STRICT
    a, b = await device("a"), await device("b")
    await add_with_one_refused(a, 3, huge_at=1)
    await sync_all(a, b)
    assert await a.retry_parked() == 1
    await a.sync(timeout=PATIENCE)
    assert a.status().parked == 1
    server.modes = Modes()
    assert await a.retry_parked([tuple((await a.parked())[0].dot)]) == 1
    assert a.status().parked == 0
    assert a.status().pending == 1
    assert await assert_one_history(a, b, device.new("late")) == ["0", HUGE, "2"]
    assert kinds_on_server(server) == ["append"] * 3


async def test_a_dropped_operation_is_removed_everywhere(
    device: Devices, server: DevServer
) -> None:
    """A parked operation that is dropped is removed from the local history, so that all replicas
    are equal."""
    server.modes = STRICT
    a, b = await device("a"), await device("b")
    await add_with_one_refused(a, 3, huge_at=1)
    await sync_all(a, b)
    with pytest.raises(InvalidArgument):
        await a.drop_parked()
    (parked,) = await a.parked()
    assert await a.drop_parked(("aaaaaaaa", 1)) == 0
    assert await a.drop_parked(parked.dot) == 1
    assert await a.parked() == []
    await a.add_items([text_message("3")])
    assert await assert_one_history(a, b, device.new("late")) == ["0", "2", "3"]


async def test_a_partly_stored_and_parked_batch_is_an_explained_gap(
    device: Devices, server: DevServer
) -> None:
    """The server may hold other items of a batch with one refused item. Another device, which looks
    for the rest repeatedly, learns that its writer has parked the batch."""
    server.modes = STRICT
    impatient = replace(MANUAL, hole_patience=0.0)
    a, b = await device("a"), await device("b", options=impatient)
    await a.add_items([text_message("one"), text_message(HUGE), text_message("three")])
    await a.add_items([text_message("four")])
    await a.sync(timeout=PATIENCE)
    assert kinds_on_server(server) == ["append", "append", "void"]
    late = device.new("late", options=impatient)
    for session in (b, late):
        for _ in range(3):
            await session.sync()
            assert texts(await session.get_items()) == ["four"]
            assert session.status().absent == 0


async def test_a_dropped_batch_comes_back_without_its_popped_item(
    device: Devices, server: DevServer
) -> None:
    """The refused item of a partly stored batch is popped, so that others show the rest. A device
    that drops the batch then shows the rest too, and waits for no missing item."""
    server.modes = STRICT
    a, b = await device("a"), await device("b")
    await a.add_items([text_message("one"), text_message(HUGE)])
    await a.sync(timeout=PATIENCE)
    assert await a.pop_item() == text_message(HUGE)
    await sync_all(a, b)
    assert texts(await b.get_items()) == ["one"]
    (parked,) = await a.parked()
    assert await a.drop_parked(parked.dot) == 1
    assert await assert_one_history(a, b, device.new("late")) == ["one"]


async def test_a_refused_and_popped_operation_is_not_absent(
    device: Devices, server: DevServer
) -> None:
    """An operation of which every item was popped, and whose placeholder stays, is never absent,
    also while another one is looked for."""
    server.modes = STRICT
    a, b = await device("a"), await device("b", options=replace(MANUAL, hole_patience=0.0))
    await a.add_items([text_message("one"), text_message(HUGE)])
    await a.add_items([text_message(HUGE)])
    await a.sync(timeout=PATIENCE)
    assert await a.pop_item() == text_message(HUGE)
    await a.sync(timeout=PATIENCE)
    assert kinds_on_server(server) == ["append", "pop", "void", "void"]
    for _ in range(3):
        assert (await b.sync()).absent == 0
        assert b.status().absent == 0
    assert await b.get_items() == []


async def test_an_audit_restores_a_lost_placeholder(device: Devices, server: DevServer) -> None:
    """An audit stores the placeholder of a parked operation again, and does not change an existing
    one."""
    server.modes = STRICT
    impatient = replace(MANUAL, hole_patience=0.0)
    a = await device("a")
    await add_with_one_refused(a, 2, huge_at=0)
    await a.sync(timeout=PATIENCE)
    server.evict(AGENT, lambda memory: memory["metadata"]["cs_op"] == "void")
    b = await device("b", options=impatient)
    assert b.status().absent == 1
    assert (await a.audit()).healed == 1
    assert kinds_on_server(server) == ["append", "void"]
    assert (await a.audit()).healed == 0
    await b.sync()
    assert b.status().absent == 0
    server.modes = Modes()
    await a.retry_parked()
    assert await assert_one_history(a, b, device.new("late")) == [HUGE, "1"]
    assert kinds_on_server(server) == ["append", "append"]


async def test_a_dropped_operation_that_the_server_holds_comes_back(
    device: Devices, server: DevServer
) -> None:
    """An operation that arrived without an answer and was refused when sent again is on other
    devices. After it is dropped it is on all of them soon, however deep in the listing it is."""
    short = replace(MANUAL, first_page_size=5, page_size=5)
    a, b = await device("a", options=short), await device("b")
    await a.add_items([text_message("the one")])
    server.faults.lose_response(route=BATCH, count=1)
    server.faults.status(400, route=BATCH, skip=1, count=1)
    await a.sync(timeout=PATIENCE)
    (parked,) = await a.parked()
    for number in range(30):
        server.clock.advance(60)
        await a.add_items([text_message(f"{number}")])
        await sync_all(a, b)
    assert await a.drop_parked(parked.dot) == 1
    assert len(await a.get_items()) == 30
    expected = ["the one", *(f"{number}" for number in range(30))]
    assert await assert_one_history(b, a, device.new("late")) == expected


async def test_a_parked_batch_is_parked_completely(device: Devices, server: DevServer) -> None:
    """A batch with one refused item is parked as a whole, and no other device shows any of it."""
    server.modes = STRICT
    a, b = await device("a"), await device("b")
    await a.add_items([text_message("one"), text_message(HUGE), text_message("three")])
    await a.add_items([text_message("four")])
    await a.sync(timeout=PATIENCE)
    await b.sync()
    assert texts(await b.get_items()) == ["four"]
    assert b.status().absent == 0
    (parked,) = await a.parked()
    assert len(parked.items) == 3
    server.modes = Modes()
    await a.retry_parked()
    assert await assert_one_history(a, b) == ["one", HUGE, "three", "four"]


async def test_a_retry_sends_no_popped_item(device: Devices, server: DevServer) -> None:
    """After the refused item was popped, a retry sends the rest, and nothing of that item."""
    server.modes = STRICT
    a, b = await device("a"), await device("b")
    await a.add_items([text_message("one"), text_message(HUGE)])
    await a.sync(timeout=PATIENCE)
    assert await a.pop_item() == text_message(HUGE)
    await a.sync(timeout=PATIENCE)
    assert a.status().parked == 1
    await a.retry_parked()
    assert await assert_one_history(a, b, device.new("late")) == ["one"]
    assert HUGE not in str(server.memories(AGENT))


async def test_a_clear_removes_parked_operations(device: Devices, server: DevServer) -> None:
    """Clearing a session removes its parked operations from the history too, on all devices."""
    server.modes = STRICT
    a, b = await device("a"), await device("b")
    await add_with_one_refused(a, 3, huge_at=1)
    await sync_all(a, b)
    await a.clear_session()
    await a.add_items([text_message("after")])
    await sync_all(a, b)
    assert texts(await a.get_items()) == texts(await b.get_items()) == ["after"]


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_a_server_that_refuses_everything_parks_nothing(
    device: Devices, server: DevServer, status: int
) -> None:
    """When even a placeholder is refused the operation is not the cause: nothing is parked, and
    everything arrives when the server accepts requests again."""
    a = await device("a")
    fault = server.faults.status(status, route=BATCH)
    for number in range(20):
        await a.add_items([text_message(str(number))])
    await time_out(a.sync, lambda: "refuses everything" in str(a.status().last_error))
    assert (a.status().pending, a.status().parked) == (20, 0)
    fault.remove()
    assert await assert_one_history(a, device.new("b")) == [str(number) for number in range(20)]


async def test_a_lost_placeholder_is_sent_before_the_operation_is_parked(
    device: Devices, server: DevServer
) -> None:
    """A placeholder that gets lost is sent again before the operation counts as parked."""
    server.modes = STRICT
    a, b = await device("a", options=MANUAL), await device("b")
    await add_with_one_refused(a, 1, huge_at=0)
    server.faults.lose_response(route=BATCH, skip=1, count=1)
    await a.sync(timeout=PATIENCE)
    assert a.status().parked == 1
    assert kinds_on_server(server) == ["void"]
    await b.sync()
    assert b.status().absent == 0


async def test_parked_operations_survive_a_restart(device: Devices, server: DevServer) -> None:
    """Parked operations are still parked and readable, and can be retried, after the journal was
    opened again."""
    server.modes = STRICT
    a = await device("a")
    await add_with_one_refused(a, 2, huge_at=0)
    await a.sync(timeout=PATIENCE)
    await a.close()
    again = device.new("a")
    assert [parked.items for parked in await again.parked()] == [[text_message(HUGE)]]
    assert again.status().parked == 1
    server.modes = Modes()
    await again.retry_parked()
    assert await assert_one_history(again, device.new("b")) == [HUGE, "1"]
