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
    assert_one_history,
    items_on_server,
    kinds_on_server,
    sync_all,
    text_message,
    texts,
    time_out,
    wait_until,
)

ROUNDS = 12


async def test_two_devices_never_pop_the_same_item(device: Devices, server: DevServer) -> None:
    """Two devices with many concurrent confirmed pops share the items: no item is given twice, none
    is lost."""
    a, b = await device("a", pop="confirmed"), await device("b", pop="confirmed")
    for number in range(ROUNDS * 2):
        await a.add_items([text_message(str(number))])
    await sync_all(a, b)
    got: list[str] = []
    for _ in range(ROUNDS):
        popped = await asyncio.gather(a.pop_item(), b.pop_item())
        got += texts([item for item in popped if item is not None])
    assert max(Counter(got).values()) == 1
    left = await assert_one_history(a, b, device.new("late"))
    assert sorted(got + left) == sorted(str(number) for number in range(ROUNDS * 2))
    assert items_on_server(server) == left


async def test_a_long_item_of_several_rows_is_popped(device: Devices, server: DevServer) -> None:
    """Some servers count the rows of a long text's sentences as deleted memories too."""
    server.modes = server.modes.changed({"derived_children": "hidden"})
    a, b = await device("a", pop="confirmed"), await device("b", pop="confirmed")
    words = "The first sentence of some length stands here. And a second one follows behind it. "
    await a.add_items([text_message(words * 2)])
    await sync_all(a, b)
    assert len(server.memories(AGENT, with_children=True)) > 1
    popped = await asyncio.gather(a.pop_item(), b.pop_item())
    assert texts([item for item in popped if item is not None]) == [words * 2]
    assert await assert_one_history(a, b, device.new("late")) == []


async def test_concurrent_pops_on_one_device_get_different_items(
    device: Devices, server: DevServer
) -> None:
    """Confirmed pops of several tasks on one journal each get a different item."""
    a = await device("a", pop="confirmed")
    for number in range(8):
        await a.add_items([text_message(str(number))])
    await a.sync()
    popped = await asyncio.gather(*(a.pop_item() for _ in range(10)))
    found = [item for item in popped if item is not None]
    assert sorted(texts(found)) == [str(number) for number in range(8)]
    assert popped.count(None) == 2


async def test_a_new_claim_is_not_taken_for_abandoned(
    device: Devices, server: DevServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task that looks for abandoned claims skips one whose owner, in the same process, does not
    know yet that it was stored."""
    a = await device("a", pop="confirmed")
    await a.add_items([text_message("one")])
    await a.add_items([text_message("two")])
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
    assert [await first, await second] == [text_message("two"), text_message("one")]


async def test_the_loser_of_a_race_takes_the_next_item(device: Devices, server: DevServer) -> None:
    """An item that another device claimed, which is not known here yet, is skipped."""
    a, b = await device("a", pop="confirmed"), await device("b", pop="confirmed")
    await a.add_items([text_message("one")])
    await a.add_items([text_message("two")])
    await sync_all(a, b)
    assert await a.pop_item() == text_message("two")
    assert await b.pop_item() == text_message("one")
    assert await assert_one_history(a, b) == []


@pytest.mark.parametrize("lost", ["request", "answer", "500 after", "408 after", "html"])
async def test_a_claim_without_an_answer_returns_nothing(
    device: Devices, server: DevServer, lost: str
) -> None:
    """Without the server's answer a confirmed pop raises, returns nothing, is sent only once, and
    is resolved later: the item is popped if the server deleted it, and visible as before if not."""
    a, b = await device("a", pop="confirmed"), await device("b")
    await a.add_items([text_message("one"), text_message("two")])
    await sync_all(a, b)
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
    await wait_until(lambda: server.requests.count(FORGET) == before + 1)
    assert texts(await a.get_items()) == ["one", "two"]
    left = ["one", "two"] if lost == "request" else ["one"]
    assert await assert_one_history(a, b) == left
    assert await a.pop_item() == text_message(left[-1])
    assert await assert_one_history(a, b) == left[:-1]


async def test_a_confirmed_pop_without_a_server_raises(device: Devices, server: DevServer) -> None:
    """A confirmed pop of a sent item raises and changes nothing while the server is unreachable."""
    a = await device("a", pop="confirmed")
    await a.add_items([text_message("one")])
    await a.sync()
    server.stop()
    with pytest.raises(PopUnconfirmed):
        await a.pop_item()
    assert texts(await a.get_items()) == ["one"]
    server.start()
    await a.sync(timeout=PATIENCE)
    assert await a.pop_item() == text_message("one")


async def test_an_unsent_item_is_popped_without_the_server(
    device: Devices, server: DevServer
) -> None:
    """An item that no other device can have seen is popped without a request."""
    a = await device("a", pop="confirmed")
    server.stop()
    await a.add_items([text_message("one")])
    assert await a.pop_item() == text_message("one")
    server.start()
    assert await assert_one_history(a, device.new("b")) == []
    assert items_on_server(server) == []


async def test_an_item_being_sent_is_claimed_after_it_arrived(
    device: Devices, server: DevServer
) -> None:
    """An item whose store request got no answer is sent again first, and claimed then."""
    a, b = await device("a", pop="confirmed"), await device("b")
    server.faults.lose_response(route=BATCH)
    await a.add_items([text_message("one")])
    await time_out(a.flush, lambda: items_on_server(server) == ["one"])
    server.faults.clear()
    assert await a.pop_item() == text_message("one")
    assert await assert_one_history(a, b) == []


async def test_a_claim_in_doubt_survives_no_clear(device: Devices, server: DevServer) -> None:
    """A claim without an answer stays removed when the session was cleared, and changes nothing
    later."""
    a, b = await device("a", pop="confirmed"), await device("b")
    await a.add_items([text_message("one"), text_message("two")])
    await sync_all(a, b)
    server.faults.lose_response(route=FORGET, count=1)
    with pytest.raises(PopUnconfirmed):
        await a.pop_item()
    await a.clear_session()
    await a.add_items([text_message("new")])
    assert await assert_one_history(a, b, device.new("late")) == ["new"]


@pytest.mark.parametrize("what", ["clear", "pop"])
async def test_local_removals_do_not_wait_for_a_claim(
    device: Devices, server: DevServer, what: str
) -> None:
    """A clear, or a local pop of another session on the journal, does not wait for a claim under
    way. The claim gets its item or nothing, the item is given once, and it is removed."""
    a, b = await device("a", pop="confirmed"), await device("b")
    local = device.new("a")
    await a.add_items([text_message("one"), text_message("two")])
    await sync_all(a, b)
    with server.faults.latency(0.3, route=FORGET, count=1) as slow:
        claiming = asyncio.ensure_future(a.pop_item())
        await wait_until(lambda: slow.fired)
        if what == "clear":
            await local.clear_session()
            taken = []
        else:
            taken = [await local.pop_item()]
        claimed = await claiming
    assert taken in ([], [text_message("one")])
    assert claimed in (None, text_message("two"))
    assert await assert_one_history(a, b, device.new("late")) == []
    assert items_on_server(server) == []


async def test_an_item_cleared_elsewhere_is_not_given(device: Devices, server: DevServer) -> None:
    """An item that another device has cleared is not given to a claimer."""
    a, b = await device("a", pop="confirmed"), await device("b")
    await a.add_items([text_message("one")])
    await sync_all(a, b)
    await b.clear_session()
    await b.sync()
    assert await a.pop_item() is None
    assert await assert_one_history(a, b) == []


async def test_a_claim_of_a_closed_process_is_resolved(device: Devices, server: DevServer) -> None:
    """The next opening of the journal resolves a claim that an earlier opening left."""
    a, b = await device("a", pop="confirmed"), await device("b")
    await a.add_items([text_message("one"), text_message("two")])
    await sync_all(a, b)
    server.faults.lose_response(route=FORGET)
    with pytest.raises(PopUnconfirmed):
        await a.pop_item()
    server.faults.clear()
    server.stop()
    await a.close()
    server.start()
    # Long after the claim: no process can still wait for its answer.
    later = Runtime(wall_ms=lambda: int(time.time() * 1000) + 3_600_000)
    again = await device("a", pop="confirmed", runtime=later)
    assert await assert_one_history(again, b) == ["one"]


async def test_a_cancelled_claim_is_resolved(device: Devices, server: DevServer) -> None:
    """A confirmed pop that is cancelled while it waits leaves a claim that is resolved later."""
    a, b = await device("a", pop="confirmed"), await device("b")
    await a.add_items([text_message("one"), text_message("two")])
    await sync_all(a, b)
    slow = server.faults.latency(3600, after_commit=True, route=FORGET, count=1)
    waiting = asyncio.ensure_future(a.pop_item())
    await wait_until(lambda: slow.fired)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    # Carried out, or cut off before its body arrived.
    await wait_until(lambda: items_on_server(server) == ["one"] or server.requests.count(FORGET))
    found = await assert_one_history(a, b)
    assert found in (["one"], ["one", "two"])
    assert items_on_server(server) == found


async def test_a_large_item_is_popped_with_all_its_parts(
    device: Devices, server: DevServer
) -> None:
    """A confirmed pop of an item in many parts leaves no part of it on the server."""
    a, b = await device("a", pop="confirmed"), await device("b", pop="confirmed")
    large: dict[str, Any] = text_message("y" * 100_000)
    await a.add_items([large])
    await sync_all(a, b)
    assert len(server.memories(server.agents()[0])) > 3
    assert await b.pop_item() == large
    assert await a.pop_item() is None
    assert await assert_one_history(a, b) == []
    assert not [
        m for m in server.memories(server.agents()[0]) if m["metadata"]["cs_op"] == "append"
    ]


async def test_a_local_pop_elsewhere_stops_no_confirmed_pop(
    device: Devices, server: DevServer
) -> None:
    """A local pop on another device that has not synced yet does not stop a confirmed one, and the
    item is removed once."""
    a, b = await device("a"), await device("b", pop="confirmed")
    await a.add_items([text_message("one"), text_message("two")])
    await sync_all(a, b)
    assert await a.pop_item() == text_message("two")
    assert await b.pop_item() == text_message("two")
    assert await assert_one_history(a, b) == ["one"]


async def test_confirmed_pops_work_in_a_private_session(device: Devices, server: DevServer) -> None:
    """Confirmed pops work where the server stores no text."""
    options = replace(MANUAL)
    a = await device("a", pop="confirmed", content="none", options=options)
    await a.add_items([text_message("one"), text_message("two")])
    await a.sync()
    assert await a.pop_item() == text_message("two")
    assert await assert_one_history(a, device.new("b")) == ["one"]


async def test_one_absence_does_not_prove_a_claim(device: Devices, server: DevServer) -> None:
    """A claim that never arrived does not count as successful because a lagging node does not list
    the memory."""
    a = await device("a", pop="confirmed", options=replace(MANUAL, claim_patience=60.0))
    await a.add_items([text_message("one"), text_message("two")])
    await a.sync(timeout=PATIENCE)
    with server.faults.lose_request(route=FORGET), pytest.raises(PopUnconfirmed):
        await a.pop_item()
    with server.faults.status(404, route="GET /v1/memory/get/*"), pytest.raises(PopUnconfirmed):
        await a.pop_item()
    assert await a.get_items() == [text_message("one"), text_message("two")]
    assert await a.pop_item() == text_message("two")
    assert await a.pop_item() == text_message("one")


async def test_an_item_being_sent_is_claimed_on_the_server(
    device: Devices, server: DevServer
) -> None:
    """The server decides about an item that is popped while it is being sent."""
    a = await device("a", pop="confirmed", options=MANUAL)
    b = await device("b", pop="confirmed", options=MANUAL)
    await a.add_items([text_message("the one")])
    with server.faults.latency(0.3, route="POST /v1/agents", count=1) as slow:
        leaving = asyncio.ensure_future(a.sync(timeout=PATIENCE))
        await wait_until(lambda: slow.fired)
        popped = [await a.pop_item()]
        await leaving
    await b.sync(timeout=PATIENCE)
    popped.append(await b.pop_item())
    assert sorted(item is not None for item in popped) == [False, True]


async def test_a_parked_item_is_popped_first(device: Devices, server: DevServer) -> None:
    """No other device has an item that the server refuses: it is popped here, in its turn."""
    a = await device("a", pop="confirmed", options=MANUAL)
    await a.add_items([text_message("old")])
    await a.sync(timeout=PATIENCE)
    await a.add_items([text_message("x" * 10)])
    with server.faults.status(400, route=BATCH, count=1):
        await a.sync(timeout=PATIENCE)
    assert a.status().parked == 1
    assert await a.pop_item() == text_message("x" * 10)
    assert await a.pop_item() == text_message("old")


async def test_an_item_refused_during_its_claim_is_popped_first(
    device: Devices, server: DevServer
) -> None:
    """The answer to the first request was lost, and the server refuses the item when it is sent
    again for the claim. No other device has it, so it is popped and not skipped."""
    a = await device("a", pop="confirmed")
    await a.add_items([text_message("first")])
    await a.sync(timeout=PATIENCE)
    await a.add_items([text_message("refused")])
    with server.faults.lose_request(route=BATCH) as lost:
        await time_out(a.flush, lambda: lost.seen)
    server.faults.status(400, route=BATCH, count=1)
    assert await a.pop_item() == text_message("refused")
    assert await a.pop_item() == text_message("first")
    assert await a.pop_item() is None


async def test_an_item_that_the_server_lost_is_restored_and_not_removed(
    device: Devices, server: DevServer
) -> None:
    """An item that the server lost is not given, stays visible, and is sent again once no operation
    has removed it for `hole_patience`. Then it can be popped."""
    patient = replace(MANUAL, hole_patience=60.0)
    a, b = await device("a", pop="confirmed", options=patient), await device("b")
    await a.add_items([text_message("one"), text_message("two")])
    await sync_all(a, b)
    assert server.evict(AGENT, lambda memory: memory["content"] == "two") == 1
    assert await a.pop_item() == text_message("one")
    await a.sync(timeout=PATIENCE)
    assert texts(await a.get_items()) == ["two"]
    assert items_on_server(server) == []
    await a.close()
    later = Runtime(wall_ms=lambda: int(time.time() * 1000) + 3_600_000)
    a = await device("a", pop="confirmed", options=patient, runtime=later)
    assert await assert_one_history(a, b, device.new("late")) == ["two"]
    assert items_on_server(server) == ["two"]
    assert await a.pop_item() == text_message("two")
    assert await assert_one_history(a, b) == []


async def test_an_item_stored_again_has_no_second_winner(
    device: Devices, server: DevServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device pops an item, and an audit elsewhere stores it again before the pop arrives. A
    second device does not get it, because it finds the winner's note."""
    monkeypatch.setattr(confirmed_pop, "CONTEST_SECONDS", 0.3)
    a, b = await device("a", pop="confirmed"), await device("b", pop="confirmed")
    await a.add_items([text_message("one"), text_message("two")])
    await sync_all(a, b)
    assert await a.pop_item() == text_message("two")
    assert (await b.audit()).healed == 1
    assert items_on_server(server) == ["one", "two"]
    with pytest.raises(PopUnconfirmed, match="another device"):
        await b.pop_item()
    await a.sync(timeout=PATIENCE)
    assert await b.pop_item() == text_message("one")
    assert await assert_one_history(a, b, device.new("late")) == []


async def test_a_winner_whose_pop_has_arrived_is_found(device: Devices, server: DevServer) -> None:
    """A device that deletes an item that was stored again takes the next one when the first
    winner's pop has arrived."""
    a, b = await device("a", pop="confirmed"), await device("b", pop="confirmed")
    await a.add_items([text_message("one"), text_message("two")])
    await sync_all(a, b)
    assert await a.pop_item() == text_message("two")
    assert (await b.audit()).healed == 1
    with server.faults.lose_request(route=FORGET):
        await time_out(a.sync, lambda: "pop" in kinds_on_server(server))
        assert items_on_server(server) == ["one", "two"]
    assert await b.pop_item() == text_message("one")
    assert await assert_one_history(a, b) == []


async def test_a_parked_item_that_others_have_is_given_once(
    device: Devices, server: DevServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operation that arrived without an answer and was refused when sent again is on other
    devices too. Its item is claimed on the server, also by its own writer."""
    monkeypatch.setattr(confirmed_pop, "CONTEST_SECONDS", 0.3)
    a, b = await device("a", pop="confirmed"), await device("b", pop="confirmed")
    await a.add_items([text_message("the one")])
    server.faults.lose_response(route=BATCH, count=1)
    server.faults.status(400, route=BATCH, skip=1, count=1)
    await a.sync(timeout=PATIENCE)
    assert a.status().parked == 1
    assert items_on_server(server) == ["the one"]
    await b.sync(timeout=PATIENCE)
    assert await b.pop_item() == text_message("the one")
    with pytest.raises(PopUnconfirmed):
        await a.pop_item()
    await b.sync(timeout=PATIENCE)
    await a.sync(timeout=PATIENCE)
    assert await a.pop_item() is None
    assert await a.get_items() == []


async def test_a_retried_parked_item_is_given_once(
    device: Devices, server: DevServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An item that others may have is still claimed on the server after its writer retries it: it
    does not count as never sent."""
    monkeypatch.setattr(confirmed_pop, "CONTEST_SECONDS", 0.3)
    a, b = await device("a", pop="confirmed"), await device("b", pop="confirmed")
    await a.add_items([text_message("the one")])
    server.faults.lose_response(route=BATCH, count=1)
    server.faults.status(400, route=BATCH, skip=1, count=1)
    await a.sync(timeout=PATIENCE)
    assert a.status().parked == 1
    await b.sync(timeout=PATIENCE)
    assert await b.pop_item() == text_message("the one")
    assert await a.retry_parked() == 1
    with pytest.raises(PopUnconfirmed):
        await a.pop_item()
    assert await assert_one_history(b, a) == []


async def test_dropping_a_parked_operation_resolves_its_claim(
    device: Devices, server: DevServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropping a parked operation with a claim that has no answer yet deletes the claim's row and
    its note."""
    monkeypatch.setattr(confirmed_pop, "CONTEST_SECONDS", 0.3)
    a = await device("a", pop="confirmed")
    await a.add_items([text_message("the one")])
    server.faults.status(400, route=BATCH, count=1)
    await a.sync(timeout=PATIENCE)
    (parked,) = await a.parked()
    with server.faults.lose_response(route=FORGET), pytest.raises(PopUnconfirmed):
        await a.pop_item()
    assert kinds_on_server(server) == ["claim", "void"]
    assert await a.drop_parked(parked.dot) == 1
    await a.sync(timeout=PATIENCE)
    engine = await a._ready()
    assert await engine.journal.read(lambda c: c.execute("SELECT * FROM claims").fetchall()) == []
    assert kinds_on_server(server) == ["void"]


@pytest.mark.parametrize("is_told", [False, True])
async def test_an_item_sent_without_an_answer_is_given_once(
    device: Devices, server: DevServer, monkeypatch: pytest.MonkeyPatch, *, is_told: bool
) -> None:
    """The writer of an item whose store got no answer does not know that another device has popped
    it. The server is asked, and the writer gets nothing."""
    monkeypatch.setattr(confirmed_pop, "CONTEST_SECONDS", 0.3)
    a, b = await device("a", pop="confirmed"), await device("b", pop="confirmed")
    await a.add_items([text_message("the one")])
    with server.faults.lose_response(route=BATCH):
        await time_out(a.flush, lambda: items_on_server(server) == ["the one"])
    await b.sync(timeout=PATIENCE)
    assert await b.pop_item() == text_message("the one")
    if is_told:
        await b.sync(timeout=PATIENCE)
        assert await a.pop_item() is None
    else:
        with pytest.raises(PopUnconfirmed):
            await a.pop_item()
    assert await assert_one_history(b, a, device.new("late")) == []


@pytest.mark.parametrize("mode", ["local", "confirmed"])
async def test_an_item_that_the_server_did_not_delete_is_not_given(
    device: Devices, server: DevServer, mode: Literal["local", "confirmed"]
) -> None:
    """An item that another device has popped, which is not known here yet, is missing on the
    server. A deletion of nothing gives nothing, although a local pop leaves no note."""
    a, b = await device("a", pop="confirmed"), await device("b", pop=mode)
    await a.add_items([text_message("one")])
    await a.add_items([text_message("two")])
    await sync_all(a, b)
    assert await b.pop_item() == text_message("two")
    await b.sync(timeout=PATIENCE)
    assert items_on_server(server) == ["one"]
    assert await a.pop_item() == text_message("one")
    assert await assert_one_history(a, b) == []


async def test_an_item_moved_to_another_server_is_given_once(
    device: Devices, server: DevServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two devices that switch to a new server both send it their shared items, and neither pops one
    without asking the server."""
    monkeypatch.setattr(confirmed_pop, "CONTEST_SECONDS", 0.3)
    a, b = await device("a"), await device("b")
    await a.add_items([text_message("the one")])
    await sync_all(a, b)
    await a.close()
    await b.close()
    with DevServer() as other:
        a = device.new("a", url=other.url, pop="confirmed", move=True)
        b = device.new("b", url=other.url, pop="confirmed", move=True)
        assert await a.pop_item() == text_message("the one")
        with pytest.raises(PopUnconfirmed):
            await b.pop_item()
        assert await assert_one_history(a, b) == []


async def test_nothing_is_given_by_a_server_without_tags(
    device: Devices, server: DevServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A claim fails on a server that does not show the claimer its own note."""
    monkeypatch.setattr(confirmed_pop, "CONTEST_SECONDS", 0.3)
    a = await device("a", pop="confirmed")
    await a.add_items([text_message("one")])
    await a.sync()
    lost = server.faults.status(404, route="POST /v1/memories/recall/batch")
    with lost, pytest.raises(PopUnconfirmed):
        await a.pop_item()
    assert items_on_server(server) == []


async def test_an_invalid_answer_about_notes_is_not_used(
    device: Devices, server: DevServer
) -> None:
    """An answer that is not a list of memories does not count as information about other
    claimers."""
    a = await device("a", pop="confirmed")
    await a.add_items([text_message("one")])
    await a.sync()
    nonsense = server.faults.garble("object", route="POST /v1/memories/recall/batch")
    with nonsense, pytest.raises(PopUnconfirmed):
        await a.pop_item()
