from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import replace
from typing import Any, Literal

import pytest

from cached_session import PopUnconfirmed
from cached_session.devserver import DevServer
from cached_session.journal.tables.claims import Claim
from cached_session.replication import confirmed_pop
from cached_session.runtime import Runtime
from tests.replication.devices import (
    AGENT,
    BATCH,
    FORGET,
    MANUAL,
    PATIENCE,
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

ROUNDS = 12


async def test_two_devices_never_get_the_same_item(device: Devices, server: DevServer) -> None:
    """Two devices that pop in confirmed mode at the same time, many times, share the items out:
    none goes to both, none is lost."""
    a, b = await device("a", pop="confirmed"), await device("b", pop="confirmed")
    for number in range(ROUNDS * 2):
        await a.add_items([said(str(number))])
    await settle(a, b)
    got: list[str] = []
    for _ in range(ROUNDS):
        popped = await asyncio.gather(a.pop_item(), b.pop_item())
        got += texts([item for item in popped if item is not None])
    assert max(Counter(got).values()) == 1
    left = await one_history(a, b, device.new("late"))
    assert sorted(got + left) == sorted(str(number) for number in range(ROUNDS * 2))
    assert items_on(server) == left


async def test_a_long_item_is_won_however_many_rows_it_is(
    device: Devices, server: DevServer
) -> None:
    """A server that keeps the sentences of a long text as rows counts them when it deletes."""
    server.modes = server.modes.changed({"derived_children": "hidden"})
    a, b = await device("a", pop="confirmed"), await device("b", pop="confirmed")
    words = "The first sentence of some length stands here. And a second one follows behind it. "
    await a.add_items([said(words * 2)])
    await settle(a, b)
    assert len(server.memories(AGENT, with_children=True)) > 1
    popped = await asyncio.gather(a.pop_item(), b.pop_item())
    assert texts([item for item in popped if item is not None]) == [words * 2]
    assert await one_history(a, b, device.new("late")) == []


async def test_many_pops_on_one_device_share_out(device: Devices, server: DevServer) -> None:
    """Confirmed pops of several tasks on one journal each get an item of their own."""
    a = await device("a", pop="confirmed")
    for number in range(8):
        await a.add_items([said(str(number))])
    await a.sync()
    popped = await asyncio.gather(*(a.pop_item() for _ in range(10)))
    found = [item for item in popped if item is not None]
    assert sorted(texts(found)) == [str(number) for number in range(8)]
    assert popped.count(None) == 2


async def test_a_claim_just_reserved_is_not_taken_for_dead(
    device: Devices, server: DevServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task that looks for claims of the dead passes over one whose owner, a task beside it, has
    not heard yet that it was written down."""
    a = await device("a", pop="confirmed")
    await a.add_items([said("one")])
    await a.add_items([said("two")])
    await a.sync()
    journal = a._engine.journal
    write, reserved, goes_on = journal.write, asyncio.Event(), asyncio.Event()

    async def slow(run: Any, *args: Any, **kwargs: Any) -> Any:
        result = await write(run, *args, **kwargs)
        if isinstance(result, Claim) and not reserved.is_set():
            reserved.set()
            await goes_on.wait()
        return result

    monkeypatch.setattr(journal, "write", slow)
    first = asyncio.ensure_future(a.pop_item())
    await reserved.wait()
    second = asyncio.ensure_future(a.pop_item())
    await asyncio.wait([second], timeout=0.3)
    goes_on.set()
    assert [await first, await second] == [said("two"), said("one")]


async def test_a_device_that_lost_the_race_takes_the_next(
    device: Devices, server: DevServer
) -> None:
    """An item that another device claimed, unknown here yet, is passed over."""
    a, b = await device("a", pop="confirmed"), await device("b", pop="confirmed")
    await a.add_items([said("one")])
    await a.add_items([said("two")])
    await settle(a, b)
    assert await a.pop_item() == said("two")
    assert await b.pop_item() == said("one")
    assert await one_history(a, b) == []


@pytest.mark.parametrize("lost", ["request", "answer", "500 after", "408 after", "html"])
async def test_a_claim_without_an_answer_returns_nothing(
    device: Devices, server: DevServer, lost: str
) -> None:
    """Without the server's answer a confirmed pop raises, returns nothing, is sent only once, and
    is settled later: popped if the server carried it out, and visible as before if not."""
    a, b = await device("a", pop="confirmed"), await device("b")
    await a.add_items([said("one"), said("two")])
    await settle(a, b)
    match lost:
        case "request":
            server.faults.lose_request(route=FORGET, count=1)
        case "answer":
            server.faults.lose_response(route=FORGET, count=1)
        case "500 after":
            server.faults.status(500, after_commit=True, route=FORGET, count=1)
        case "408 after":
            server.faults.timeout_after_commit(route=FORGET, count=1)
        case "html":
            server.faults.garble("html", route=FORGET, count=1)
    before = server.requests.count(FORGET)
    with pytest.raises(PopUnconfirmed, match="nothing was popped") as failure:
        await a.pop_item()
    assert failure.value.__cause__ is not None
    await until(lambda: server.requests.count(FORGET) == before + 1)
    assert texts(await a.get_items()) == ["one", "two"]
    left = ["one", "two"] if lost == "request" else ["one"]
    assert await one_history(a, b) == left
    assert await a.pop_item() == said(left[-1])
    assert await one_history(a, b) == left[:-1]


async def test_offline_a_confirmed_pop_raises(device: Devices, server: DevServer) -> None:
    """With the server gone a confirmed pop of a sent item raises and changes nothing."""
    a = await device("a", pop="confirmed")
    await a.add_items([said("one")])
    await a.sync()
    server.stop()
    with pytest.raises(PopUnconfirmed):
        await a.pop_item()
    assert texts(await a.get_items()) == ["one"]
    server.start()
    await a.sync(timeout=PATIENCE)
    assert await a.pop_item() == said("one")


async def test_an_item_that_was_never_sent_needs_no_server(
    device: Devices, server: DevServer
) -> None:
    """What no other device can have seen is popped without asking, with the server gone."""
    a = await device("a", pop="confirmed")
    server.stop()
    await a.add_items([said("one")])
    assert await a.pop_item() == said("one")
    server.start()
    assert await one_history(a, device.new("b")) == []
    assert items_on(server) == []


async def test_an_item_on_its_way_is_claimed_once_it_arrived(
    device: Devices, server: DevServer
) -> None:
    """An item whose store got no answer is sent first, and claimed then."""
    a, b = await device("a", pop="confirmed"), await device("b")
    server.faults.lose_response(route=BATCH)
    await a.add_items([said("one")])
    await in_vain(a.flush, lambda: items_on(server) == ["one"])
    server.faults.clear()
    assert await a.pop_item() == said("one")
    assert await one_history(a, b) == []


async def test_a_session_cleared_meanwhile(device: Devices, server: DevServer) -> None:
    """A claim that was not answered before the session was cleared stays removed and harms
    nothing."""
    a, b = await device("a", pop="confirmed"), await device("b")
    await a.add_items([said("one"), said("two")])
    await settle(a, b)
    server.faults.lose_response(route=FORGET, count=1)
    with pytest.raises(PopUnconfirmed):
        await a.pop_item()
    await a.clear_session()
    await a.add_items([said("new")])
    assert await one_history(a, b, device.new("late")) == ["new"]


@pytest.mark.parametrize("what", ["clear", "pop"])
async def test_an_item_removed_here_while_it_is_claimed(
    device: Devices, server: DevServer, what: str
) -> None:
    """A clear, or a local pop by somebody else on the journal, does not wait for a claim that is
    under way; the claim gets its item or nothing, nobody gets it twice, and it is gone."""
    a, b = await device("a", pop="confirmed"), await device("b")
    local = device.new("a")
    await a.add_items([said("one"), said("two")])
    await settle(a, b)
    with server.faults.latency(0.3, route=FORGET, count=1) as slow:
        claiming = asyncio.ensure_future(a.pop_item())
        await until(lambda: slow.fired)
        if what == "clear":
            await local.clear_session()
            taken = []
        else:
            taken = [await local.pop_item()]
        claimed = await claiming
    assert taken in ([], [said("one")])
    assert claimed in (None, said("two"))
    assert await one_history(a, b, device.new("late")) == []
    assert items_on(server) == []


async def test_cleared_elsewhere_while_claiming(device: Devices, server: DevServer) -> None:
    """An item that another device has cleared is not given to anybody."""
    a, b = await device("a", pop="confirmed"), await device("b")
    await a.add_items([said("one")])
    await settle(a, b)
    await b.clear_session()
    await b.sync()
    assert await a.pop_item() is None
    assert await one_history(a, b) == []


async def test_a_claim_outlives_its_process(device: Devices, server: DevServer) -> None:
    """A claim left open by an opening of the journal that is gone is settled by the next one."""
    a, b = await device("a", pop="confirmed"), await device("b")
    await a.add_items([said("one"), said("two")])
    await settle(a, b)
    server.faults.lose_response(route=FORGET)
    with pytest.raises(PopUnconfirmed):
        await a.pop_item()
    server.faults.clear()
    server.stop()
    await a.close()
    server.start()
    # Long after the claim: nobody can still be waiting for its answer.
    later = Runtime(wall_ms=lambda: int(time.time() * 1000) + 3_600_000)
    again = await device("a", pop="confirmed", runtime=later)
    assert await one_history(again, b) == ["one"]


async def test_a_cancelled_claim_is_settled(device: Devices, server: DevServer) -> None:
    """A confirmed pop that is cancelled while it waits leaves a claim that is settled later."""
    a, b = await device("a", pop="confirmed"), await device("b")
    await a.add_items([said("one"), said("two")])
    await settle(a, b)
    slow = server.faults.latency(3600, after_commit=True, route=FORGET, count=1)
    waiting = asyncio.ensure_future(a.pop_item())
    await until(lambda: slow.fired)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    # Carried out, or cut off before its body was there.
    await until(lambda: items_on(server) == ["one"] or server.requests.count(FORGET))
    found = await one_history(a, b)
    assert found in (["one"], ["one", "two"])
    assert items_on(server) == found


async def test_a_large_item_is_popped_with_all_its_parts(
    device: Devices, server: DevServer
) -> None:
    """A confirmed pop of an item in many parts leaves no part of it on the server."""
    a, b = await device("a", pop="confirmed"), await device("b", pop="confirmed")
    large: dict[str, Any] = said("y" * 100_000)
    await a.add_items([large])
    await settle(a, b)
    assert len(server.memories(server.agents()[0])) > 3
    assert await b.pop_item() == large
    assert await a.pop_item() is None
    assert await one_history(a, b) == []
    assert not [
        m for m in server.memories(server.agents()[0]) if m["metadata"]["cs_op"] == "append"
    ]


async def test_local_and_confirmed_pops_mix(device: Devices, server: DevServer) -> None:
    """A local pop elsewhere, not synced yet, does not stop a confirmed one; the item goes once."""
    a, b = await device("a"), await device("b", pop="confirmed")
    await a.add_items([said("one"), said("two")])
    await settle(a, b)
    assert await a.pop_item() == said("two")
    assert await b.pop_item() == said("two")
    assert await one_history(a, b) == ["one"]


async def test_a_confirmed_pop_of_a_private_session(device: Devices, server: DevServer) -> None:
    """Confirmed pops work where the server sees no text."""
    options = replace(MANUAL)
    a = await device("a", pop="confirmed", content="none", options=options)
    await a.add_items([said("one"), said("two")])
    await a.sync()
    assert await a.pop_item() == said("two")
    assert await one_history(a, device.new("b")) == ["one"]


async def test_one_absence_is_not_believed(device: Devices, server: DevServer) -> None:
    """A claim that never arrived is not taken for won because a lagging node misses the memory."""
    a = await device("a", pop="confirmed", options=replace(MANUAL, claim_patience=60.0))
    await a.add_items([said("one"), said("two")])
    await a.sync(timeout=PATIENCE)
    with server.faults.lose_request(route=FORGET), pytest.raises(PopUnconfirmed):
        await a.pop_item()
    with server.faults.status(404, route="GET /v1/memory/get/*"), pytest.raises(PopUnconfirmed):
        await a.pop_item()
    assert await a.get_items() == [said("one"), said("two")]
    assert await a.pop_item() == said("two")
    assert await a.pop_item() == said("one")


async def test_what_is_being_sent_is_claimed_on_the_server(
    device: Devices, server: DevServer
) -> None:
    """An item popped while it leaves is not given away here: the server decides."""
    a = await device("a", pop="confirmed", options=MANUAL)
    b = await device("b", pop="confirmed", options=MANUAL)
    await a.add_items([said("the one")])
    with server.faults.latency(0.3, route="POST /v1/agents", count=1) as slow:
        leaving = asyncio.ensure_future(a.sync(timeout=PATIENCE))
        await until(lambda: slow.fired)
        popped = [await a.pop_item()]
        await leaving
    await b.sync(timeout=PATIENCE)
    popped.append(await b.pop_item())
    assert sorted(item is not None for item in popped) == [False, True]


async def test_a_parked_item_is_popped_first(device: Devices, server: DevServer) -> None:
    """What the server refuses no other device has: it is popped here, in its turn."""
    a = await device("a", pop="confirmed", options=MANUAL)
    await a.add_items([said("old")])
    await a.sync(timeout=PATIENCE)
    await a.add_items([said("x" * 10)])
    with server.faults.status(400, route=BATCH, count=1):
        await a.sync(timeout=PATIENCE)
    assert a.status().parked == 1
    assert await a.pop_item() == said("x" * 10)
    assert await a.pop_item() == said("old")


async def test_an_item_that_is_refused_while_it_is_claimed_is_popped_first(
    device: Devices, server: DevServer
) -> None:
    """The answer to its first sending was lost, and the server refuses it when it is sent again for
    the claim: nobody else has it, and it is not passed over for the one before it."""
    a = await device("a", pop="confirmed")
    await a.add_items([said("first")])
    await a.sync(timeout=PATIENCE)
    await a.add_items([said("refused")])
    with server.faults.lose_request(route=BATCH) as lost:
        await in_vain(a.flush, lambda: lost.seen)
    server.faults.status(400, route=BATCH, count=1)
    assert await a.pop_item() == said("refused")
    assert await a.pop_item() == said("first")
    assert await a.pop_item() is None


async def test_a_lost_item_is_put_back_not_removed(device: Devices, server: DevServer) -> None:
    """An item that the server has lost is given to nobody, stays visible, and is sent again once
    no operation has removed it for `hole_patience`; then it can be popped."""
    patient = replace(MANUAL, hole_patience=60.0)
    a, b = await device("a", pop="confirmed", options=patient), await device("b")
    await a.add_items([said("one"), said("two")])
    await settle(a, b)
    assert server.evict(AGENT, lambda memory: memory["content"] == "two") == 1
    assert await a.pop_item() == said("one")
    await a.sync(timeout=PATIENCE)
    assert texts(await a.get_items()) == ["two"]
    assert items_on(server) == []
    await a.close()
    later = Runtime(wall_ms=lambda: int(time.time() * 1000) + 3_600_000)
    a = await device("a", pop="confirmed", options=patient, runtime=later)
    assert await one_history(a, b, device.new("late")) == ["two"]
    assert items_on(server) == ["two"]
    assert await a.pop_item() == said("two")
    assert await one_history(a, b) == []


async def test_what_was_stored_again_has_no_second_winner(
    device: Devices, server: DevServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An item that one device has got, and that an audit elsewhere puts back before the pop is
    there, is not given to a second device: the winner's note is found."""
    monkeypatch.setattr(confirmed_pop, "CONTEST_SECONDS", 0.3)
    a, b = await device("a", pop="confirmed"), await device("b", pop="confirmed")
    await a.add_items([said("one"), said("two")])
    await settle(a, b)
    assert await a.pop_item() == said("two")
    assert (await b.audit()).healed == 1
    assert items_on(server) == ["one", "two"]
    with pytest.raises(PopUnconfirmed, match="another device"):
        await b.pop_item()
    await a.sync(timeout=PATIENCE)
    assert await b.pop_item() == said("one")
    assert await one_history(a, b, device.new("late")) == []


async def test_a_winner_that_has_answered_meanwhile_is_found_in_time(
    device: Devices, server: DevServer
) -> None:
    """Whoever deletes an item that was stored again takes the next one, if the first winner's pop
    has arrived."""
    a, b = await device("a", pop="confirmed"), await device("b", pop="confirmed")
    await a.add_items([said("one"), said("two")])
    await settle(a, b)
    assert await a.pop_item() == said("two")
    assert (await b.audit()).healed == 1
    with server.faults.lose_request(route=FORGET):
        await in_vain(a.sync, lambda: "pop" in kinds_on(server))
        assert items_on(server) == ["one", "two"]
    assert await b.pop_item() == said("one")
    assert await one_history(a, b) == []


async def test_a_parked_item_that_others_have_goes_to_one(
    device: Devices, server: DevServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operation that arrived without an answer and was refused when it was sent again is on
    other devices too: its item is claimed on the server, also by its own writer."""
    monkeypatch.setattr(confirmed_pop, "CONTEST_SECONDS", 0.3)
    a, b = await device("a", pop="confirmed"), await device("b", pop="confirmed")
    await a.add_items([said("the one")])
    server.faults.lose_response(route=BATCH, count=1)
    server.faults.status(400, route=BATCH, skip=1, count=1)
    await a.sync(timeout=PATIENCE)
    assert a.status().parked == 1
    assert items_on(server) == ["the one"]
    await b.sync(timeout=PATIENCE)
    assert await b.pop_item() == said("the one")
    with pytest.raises(PopUnconfirmed):
        await a.pop_item()
    await b.sync(timeout=PATIENCE)
    await a.sync(timeout=PATIENCE)
    assert await a.pop_item() is None
    assert await a.get_items() == []


async def test_a_parked_item_that_is_tried_again_goes_to_one(
    device: Devices, server: DevServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What others may have stays so when its writer takes it up again: it is not popped as if it
    had never been sent."""
    monkeypatch.setattr(confirmed_pop, "CONTEST_SECONDS", 0.3)
    a, b = await device("a", pop="confirmed"), await device("b", pop="confirmed")
    await a.add_items([said("the one")])
    server.faults.lose_response(route=BATCH, count=1)
    server.faults.status(400, route=BATCH, skip=1, count=1)
    await a.sync(timeout=PATIENCE)
    assert a.status().parked == 1
    await b.sync(timeout=PATIENCE)
    assert await b.pop_item() == said("the one")
    assert await a.retry_parked() == 1
    with pytest.raises(PopUnconfirmed):
        await a.pop_item()
    assert await one_history(b, a) == []


async def test_the_claim_of_a_dropped_operation_is_resolved(
    device: Devices, server: DevServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who drops a parked operation of which an item is claimed, without an answer so far, ends the
    claim: its row goes, and so does its note."""
    monkeypatch.setattr(confirmed_pop, "CONTEST_SECONDS", 0.3)
    a = await device("a", pop="confirmed")
    await a.add_items([said("the one")])
    server.faults.status(400, route=BATCH, count=1)
    await a.sync(timeout=PATIENCE)
    (parked,) = await a.parked()
    with server.faults.lose_response(route=FORGET), pytest.raises(PopUnconfirmed):
        await a.pop_item()
    assert kinds_on(server) == ["claim", "void"]
    assert await a.drop_parked(parked.dot) == 1
    await a.sync(timeout=PATIENCE)
    engine = await a._ready()
    assert await engine.journal.read(lambda c: c.execute("SELECT * FROM claims").fetchall()) == []
    assert kinds_on(server) == ["void"]


@pytest.mark.parametrize("is_told", [False, True])
async def test_an_item_sent_without_an_answer_goes_to_one(
    device: Devices, server: DevServer, monkeypatch: pytest.MonkeyPatch, *, is_told: bool
) -> None:
    """Of an item whose store got no answer its writer does not know that another device has it and
    has popped it: the server is asked, and the writer gets nothing."""
    monkeypatch.setattr(confirmed_pop, "CONTEST_SECONDS", 0.3)
    a, b = await device("a", pop="confirmed"), await device("b", pop="confirmed")
    await a.add_items([said("the one")])
    with server.faults.lose_response(route=BATCH):
        await in_vain(a.flush, lambda: items_on(server) == ["the one"])
    await b.sync(timeout=PATIENCE)
    assert await b.pop_item() == said("the one")
    if is_told:
        await b.sync(timeout=PATIENCE)
        assert await a.pop_item() is None
    else:
        with pytest.raises(PopUnconfirmed):
            await a.pop_item()
    assert await one_history(b, a, device.new("late")) == []


@pytest.mark.parametrize("mode", ["local", "confirmed"])
async def test_what_the_server_did_not_delete_is_not_given(
    device: Devices, server: DevServer, mode: Literal["local", "confirmed"]
) -> None:
    """An item that another device has popped, unknown here yet, is gone from the server, and a
    deletion of nothing gives nothing, though a local pop leaves no note."""
    a, b = await device("a", pop="confirmed"), await device("b", pop=mode)
    await a.add_items([said("one")])
    await a.add_items([said("two")])
    await settle(a, b)
    assert await b.pop_item() == said("two")
    await b.sync(timeout=PATIENCE)
    assert items_on(server) == ["one"]
    assert await a.pop_item() == said("one")
    assert await one_history(a, b) == []


async def test_what_moves_to_another_server_goes_to_one(
    device: Devices, server: DevServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two devices that go on with a new server both bring it what they share: neither pops that as
    if nobody else had it."""
    monkeypatch.setattr(confirmed_pop, "CONTEST_SECONDS", 0.3)
    a, b = await device("a"), await device("b")
    await a.add_items([said("the one")])
    await settle(a, b)
    await a.close()
    await b.close()
    with DevServer() as other:
        a = device.new("a", url=other.url, pop="confirmed")
        b = device.new("b", url=other.url, pop="confirmed")
        assert await a.pop_item() == said("the one")
        with pytest.raises(PopUnconfirmed):
            await b.pop_item()
        assert await one_history(a, b) == []


async def test_without_tags_nothing_is_given(
    device: Devices, server: DevServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that does not show the claimer its own note is not believed."""
    monkeypatch.setattr(confirmed_pop, "CONTEST_SECONDS", 0.3)
    a = await device("a", pop="confirmed")
    await a.add_items([said("one")])
    await a.sync()
    lost = server.faults.status(404, route="POST /v1/memories/recall/batch")
    with lost, pytest.raises(PopUnconfirmed):
        await a.pop_item()
    assert items_on(server) == []


async def test_nonsense_about_the_notes_is_no_answer(device: Devices, server: DevServer) -> None:
    """What is no list of memories says nothing about other claimers."""
    a = await device("a", pop="confirmed")
    await a.add_items([said("one")])
    await a.sync()
    nonsense = server.faults.garble("object", route="POST /v1/memories/recall/batch")
    with nonsense, pytest.raises(PopUnconfirmed):
        await a.pop_item()
