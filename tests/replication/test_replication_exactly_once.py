from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest

from cached_session.devserver import DevServer, FaultPlan, Modes
from cached_session.devserver.faults import GARBLED
from tests.replication.devices import (
    AGENT,
    BATCH,
    FORGET,
    GET,
    LISTING,
    MANUAL,
    PATIENCE,
    POLICY,
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

pytestmark = pytest.mark.promise(number=3)

LOSSES: dict[str, Callable[[FaultPlan], object]] = {
    "request lost": lambda plan: plan.lose_request(route=BATCH, count=3),
    "answer lost": lambda plan: plan.lose_response(route=BATCH, count=3),
    "500 before": lambda plan: plan.status(500, route=BATCH, count=3),
    "500 after": lambda plan: plan.status(500, after_commit=True, route=BATCH, count=3),
    "502 after": lambda plan: plan.status(502, after_commit=True, route=BATCH, count=3),
    "503 after": lambda plan: plan.status(
        503, after_commit=True, retry_after=0, route=BATCH, count=3
    ),
    "504 after": lambda plan: plan.status(504, after_commit=True, route=BATCH, count=3),
    "408 after": lambda plan: plan.timeout_after_commit(route=BATCH, count=3),
    "418": lambda plan: plan.status(418, after_commit=True, route=BATCH, count=3),
    "processed twice": lambda plan: plan.duplicate(route=BATCH, count=3),
    "prefix stored": lambda plan: plan.partial_batch(2, count=3),
    "nothing of it stored": lambda plan: plan.partial_batch(0, count=3),
    "answer cut": lambda plan: plan.truncate(route=BATCH, count=3),
    "every second lost": lambda plan: plan.lose_response(route=BATCH, every=2, count=3),
    **{
        f"200 {body}": lambda plan, body=body: plan.garble(body, route=BATCH, count=3)  # type: ignore[misc]
        for body in GARBLED
    },
}


@pytest.mark.parametrize("loss", LOSSES)
async def test_each_operation_is_stored_once(device: Devices, server: DevServer, loss: str) -> None:
    """Each item is on the server once and shown once by the other device, whatever happens to a
    store request or its answer."""
    LOSSES[loss](server.faults)
    options = replace(MANUAL, max_batch_memories=5, backoff_base=0.02, backoff_max=0.05)
    a, b = await device("a", options=options), await device("b")
    for number in range(4):
        await a.add_items([text_message(f"{number}.{part}") for part in range(3)])
    await a.pop_item()
    expected = [f"{n}.{part}" for n in range(4) for part in range(3)][:-1]
    await a.sync(timeout=PATIENCE)
    assert (a.status().pending, a.status().parked) == (0, 0)
    assert items_on_server(server) == expected
    assert Counter(kinds_on_server(server)) == {"append": 11, "pop": 1}
    assert await assert_one_history(a, b) == expected


@pytest.mark.parametrize(
    "loss",
    [
        lambda plan: plan.lose_request(route=FORGET, count=2),
        lambda plan: plan.lose_response(route=FORGET, count=2),
        lambda plan: plan.status(500, after_commit=True, route=FORGET, count=2),
        lambda plan: plan.duplicate(route=FORGET, count=2),
        lambda plan: plan.garble("html", route=FORGET, count=2),
    ],
)
async def test_deletions_continue_after_a_lost_request(
    device: Devices, server: DevServer, loss: Callable[[FaultPlan], object]
) -> None:
    """Removed items are deleted on the server, whatever happens to a request or its answer."""
    a = await device("a")
    await a.add_items([text_message("one"), text_message("two"), text_message("three")])
    await a.sync()
    await a.pop_item()
    loss(server.faults)
    await a.sync(timeout=PATIENCE)
    assert items_on_server(server) == ["one", "two"]
    server.faults.clear()
    await a.clear_session()
    await a.sync(timeout=PATIENCE)
    assert items_on_server(server) == []


@pytest.mark.parametrize("removal", ["pop", "confirmed pop", "clear"])
@pytest.mark.parametrize("restarts", [False, True])
async def test_an_item_stored_again_after_its_removal_is_deleted_again(
    device: Devices, server: DevServer, removal: str, restarts: bool
) -> None:
    """A device gets no answer to a store. Another one pops the item and deletes it from the server.
    Then the first sends it again before it knows, and the item is deleted again."""
    a = await device("a")
    b = await device("b", pop="confirmed" if removal == "confirmed pop" else "local")
    with server.faults.lose_response(route=BATCH):
        await a.add_items([text_message("one"), text_message("two")])
        await time_out(a.flush, lambda: items_on_server(server))
        if restarts:
            await a.close()
            a = device.new("a")
    await b.sync(timeout=PATIENCE)
    if removal == "clear":
        await b.clear_session()
    else:
        assert await b.pop_item() == text_message("two")
    await b.sync(timeout=PATIENCE)
    left = [] if removal == "clear" else ["one"]
    assert items_on_server(server) == left
    with server.faults.status(500, route=LISTING):
        await a.flush(timeout=PATIENCE)
    assert items_on_server(server) == ["one", "two"]
    assert await assert_one_history(a, b, device.new("late")) == left
    assert items_on_server(server) == left


async def test_a_store_that_times_out_is_stored_once(device: Devices, server: DevServer) -> None:
    """A request whose answer comes too late is sent again, and its item is stored once."""
    a = await device("a", options=replace(MANUAL, request_timeout=0.5))
    server.faults.latency(1.0, after_commit=True, route=BATCH, count=1)
    await a.add_items([text_message("slow")])
    await a.sync(timeout=PATIENCE)
    assert items_on_server(server) == ["slow"]
    await wait_until(lambda: server.requests.count(BATCH) >= 2)


MODES = {
    "replace, reset": Modes(existing_id="replace", created_at_on_replace="reset"),
    "replace, keep": Modes(existing_id="replace", created_at_on_replace="keep"),
    "refuse": Modes(existing_id="refuse"),
    "ignore": Modes(existing_id="ignore"),
    "children leak": Modes(derived_children="leak"),
    "children hidden": Modes(derived_children="hidden"),
    "strips nul": Modes(strips_nul=True),
    "404 for unknown agents": Modes(unknown_agent="not_found"),
    "empty for unknown agents": Modes(unknown_agent="empty"),
    "404 for unknown memories": Modes(forget_unknown="not_found"),
    "limit refused": Modes(over_limit="reject"),
    "drops duplicates": Modes(dedup_on_store=True),
    "64 KiB of metadata": Modes(metadata_max_bytes=65_536),
}
LONG = "A long sentence stands here. " * 5 + "It makes the server derive children! Does it? "


@pytest.mark.parametrize(
    ("mode", "version"),
    [
        *((mode, "0.12.3") for mode in MODES),
        *((mode, "0.12.0") for mode in ("refuse", "children leak")),
        *((mode, "0.11.108") for mode in ("replace, keep", "ignore", "children leak")),
    ],
)
async def test_the_history_is_the_same_on_any_server(
    device: Devices, server: DevServer, mode: str, version: str
) -> None:
    """A lost answer, a pop and two devices give one history, whatever a server does where Dakera's
    behaviour is not documented."""
    server.modes = MODES[mode]
    server.state.version = type(server.state.version)(version)
    a, b = await device("a"), await device("b")
    # Similar texts are near-duplicates. Where the server drops them, the retention guard has to
    # prevent it.
    await a.add_items([text_message(f"{LONG}{number}") for number in range(5)])
    await a.add_items(
        [text_message("zero \x00 inside"), text_message("ok", "assistant"), text_message("ok")]
    )
    server.faults.lose_response(route=BATCH, count=1)
    await a.sync(timeout=PATIENCE)
    await b.sync(timeout=PATIENCE)
    await b.add_items([text_message("ok"), text_message("no")])
    server.faults.lose_response(route=BATCH, count=1)
    await b.sync(timeout=PATIENCE)
    await a.sync(timeout=PATIENCE)
    assert await a.pop_item() == text_message("no")
    server.faults.lose_response(route=FORGET, count=1)
    found = await assert_one_history(a, b, device.new("late"))
    assert found == [
        *(f"{LONG}{number}" for number in range(5)),
        "zero \x00 inside",
        "ok",
        "ok",
        "ok",
    ]


async def test_near_duplicates_that_the_server_drops_are_not_lost(
    device: Devices, server: DevServer
) -> None:
    """Where the policy on near-duplicates cannot be changed, a dropped item never counts as stored,
    and arrives once the policy can be changed."""
    server.modes = Modes(dedup_on_store=True)
    fault = server.faults.status(403, route=POLICY)
    a = await device("a", options=QUICK)
    await a.add_items([text_message("ok")])
    await a.add_items([text_message("ok", "assistant")])
    await wait_until(lambda: "did not keep" in str(a.status().last_error))
    assert a.status().pending > 0
    assert texts(await a.get_items()) == ["ok", "ok"]
    fault.remove()
    server.modes = Modes()
    assert await assert_one_history(a, device.new("b")) == ["ok", "ok"]


async def test_derived_memories_are_ignored(device: Devices, server: DevServer) -> None:
    """Sentences that the server derives from an item, with its tags and metadata, are shown
    nowhere."""
    server.modes = Modes(derived_children="leak")
    server.state.version = type(server.state.version)("0.12.0")
    a, b = await device("a"), await device("b")
    await a.add_items([text_message(LONG)])
    await sync_all(a, b)
    assert len(server.memories(AGENT, with_children=True)) > 1
    assert await assert_one_history(a, b) == [LONG]
    assert (await b.audit()).healed == 0


async def test_a_listing_with_small_pages_is_read_to_its_end(
    device: Devices, server: DevServer
) -> None:
    """When a server returns smaller pages than requested, pages are requested until one is
    empty."""
    a = await device("a")
    for number in range(40):
        await a.add_items([text_message(str(number))])
    await a.sync()
    known = type(server.state.agents[AGENT])
    whole = known.page

    def clamped(self: object, offset: int, limit: int, *, with_children: bool) -> object:
        return whole(self, offset, min(limit, 7), with_children=with_children)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(known, "page", clamped)
        b = device.new("b")
        await b.sync()
        assert texts(await b.get_items()) == [str(number) for number in range(40)]
    assert server.requests.count(LISTING) > 6


async def test_a_batch_accepted_before_the_server_restarts_empty_is_sent_again(
    device: Devices, server: DevServer
) -> None:
    """The first half of a batch is accepted, the second refused for a moment, in which the server
    loses everything. The batch is acknowledged once all of it is stored."""
    a = await device("a", options=replace(MANUAL, max_batch_memories=5))
    words = [str(number) for number in range(12)]
    await a.add_items([text_message(word) for word in words])
    with server.faults.status(429, route=BATCH, skip=1, retry_after=0) as busy:
        await time_out(a.flush, lambda: busy.seen > 1)
    assert len(items_on_server(server)) == 5
    await asyncio.to_thread(server.stop)
    server.reset()
    await asyncio.to_thread(server.start)
    await a.flush(timeout=PATIENCE)
    assert sorted(items_on_server(server)) == sorted(words)
    assert await assert_one_history(device.new("late"), a) == words


async def test_a_server_that_lists_late_gets_a_batch_once_more(
    device: Devices, server: DevServer
) -> None:
    """Reads may lag behind: an interrupted batch is sent once more, and not repeatedly until the
    reads have caught up."""
    a = await device("a", options=replace(MANUAL, max_batch_memories=5))
    words = [str(number) for number in range(12)]
    await a.add_items([text_message(word) for word in words])
    with server.faults.status(404, route=GET):
        for skip in (1, 2, 1):  # the first half; the rest, doubt, all again; the first half of it
            with server.faults.status(503, route=BATCH, skip=skip, retry_after=0) as busy:
                await time_out(a.flush, lambda busy=busy, skip=skip: busy.seen > skip)
        before = server.requests.count(BATCH)
        await a.flush(timeout=PATIENCE)
    assert server.requests.count(BATCH) - before == 2
    assert await assert_one_history(device.new("late"), a) == words
