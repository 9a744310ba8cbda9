from __future__ import annotations

import asyncio
import copy
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

import pytest

from cached_session.devserver import DevServer
from cached_session.history.ids import session_key
from cached_session.history.ops import Dot, Kind, Operation
from cached_session.remote.wire import memories_of
from tests.replication.devices import (
    AGENT,
    BATCH,
    GET,
    LISTING,
    MANUAL,
    PATIENCE,
    Devices,
    assert_one_history,
    items_on_server,
    text_message,
    texts,
    wait_until,
)

SMALL = replace(MANUAL, page_size=25, first_page_size=25)
WRITER = "a" * 24


def by_id(server: DevServer) -> dict[str, dict[str, Any]]:
    return {memory["id"]: copy.deepcopy(memory) for memory in server.memories(AGENT)}


async def store_memories(session_id_url: str, memories: list[dict[str, Any]]) -> None:
    """Store memories as another program would."""
    from dakera import AsyncDakeraClient

    fields = ("id", "content", "metadata", "tags", "importance", "memory_type")
    async with AsyncDakeraClient(session_id_url, max_retries=1) as client:
        body = {
            "agent_id": AGENT,
            "memories": [{k: m[k] for k in fields if k in m} for m in memories],
        }
        await client._request("POST", "/v1/memories/store/batch", data=body)


def plain(memory: dict[str, Any]) -> dict[str, Any]:
    """Return a memory as it was sent, without the fields that the server added."""
    memory = copy.deepcopy(memory)
    memory.get("metadata", {}).pop("_dakera_event_time", None)
    return memory


async def test_a_history_of_many_pages_arrives_completely(
    device: Devices, server: DevServer
) -> None:
    """A history of several pages is read to its end, and a second pull reads only the newest
    page."""
    a, b = await device("a"), device.new("b", options=SMALL)
    for number in range(30):
        await a.add_items([text_message(f"{number}.{part}") for part in range(4)])
    await a.sync()
    assert len(await assert_one_history(b, a)) == 120
    assert server.requests.count(LISTING) >= 6
    server.clock.advance(1000)
    await a.add_items([text_message("new")])
    await a.sync()
    await b.sync()
    server.requests.clear()
    server.clock.advance(1000)
    await b.sync()
    assert server.requests.count(LISTING) == 1


async def test_small_pages_overlap_by_at_most_half(device: Devices, server: DevServer) -> None:
    """Adjacent pages share at most half of their rows, however small the pages are."""
    a = await device("a")
    for number in range(60):
        await a.add_items([text_message(str(number))])
    await a.sync()
    server.requests.clear()
    b = device.new("b", options=replace(MANUAL, page_size=10, first_page_size=10))
    assert len(await b.get_items()) == 60
    assert server.requests.count(LISTING) <= 14


async def test_a_listing_that_shifts_between_pages_loses_nothing(
    device: Devices, server: DevServer
) -> None:
    """Memories deleted between two pages move others across the page boundary, and those arrive
    nevertheless."""
    a, b = await device("a"), await device("b", options=SMALL)
    for number in range(100):
        await a.add_items([text_message(str(number))])
    await a.sync()
    newest = [memory["id"] for memory in server.memories(AGENT)][:24]
    hit: list[str] = []
    known = type(server.state.agents[AGENT])
    whole = known.page

    def shifting(self: Any, offset: int, limit: int, *, with_children: bool) -> Any:
        found = whole(self, offset, limit, with_children=with_children)
        if newest:
            hit.append(newest.pop())
            self.remove(hit[-1], server.clock.now())
            if newest:
                hit.append(newest.pop())
                self.remove(hit[-1], server.clock.now())
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(known, "page", shifting)
        await b.sync()
    assert len(hit) > 8
    await a.audit()
    assert await assert_one_history(b, a) == [str(number) for number in range(100)]


async def test_memories_that_arrive_between_pages_are_not_lost(
    device: Devices, server: DevServer
) -> None:
    """The items of a device that writes while another one pages through its history all arrive."""
    a, b = await device("a"), await device("b", options=replace(SMALL, page_size=30))
    for number in range(60):
        await a.add_items([text_message(str(number))])
    await a.sync()
    server.faults.latency(0.02, route=LISTING)
    pulling = asyncio.ensure_future(b.sync())
    for number in range(60, 70):
        await a.add_items([text_message(str(number))])
        await a.flush(timeout=PATIENCE)
    await pulling
    assert await assert_one_history(b, a) == [str(number) for number in range(70)]


async def test_stale_answers_delay_and_lose_nothing(device: Devices, server: DevServer) -> None:
    """A server replica that lags by a minute delays what it does not know yet, and nothing else."""
    a, b = await device("a"), await device("b")
    server.clock.freeze()
    for number in range(5):
        await a.add_items([text_message(str(number))])
        await a.sync()
        server.clock.advance(20)
    with server.faults.stale(70, every=2):
        for _ in range(3):
            await b.sync()
            shown = texts(await b.get_items())
            assert shown == [str(number) for number in range(5)][: len(shown)] or len(shown) == 5
    with server.faults.stale(70):
        await b.sync()
    assert await assert_one_history(a, b) == [str(number) for number in range(5)]


async def test_a_gap_is_fetched_by_id(device: Devices, server: DevServer) -> None:
    """An operation that no listing shows is fetched by the id of its gap."""
    a, b = await device("a"), await device("b")
    for number in range(6):
        await a.add_items([text_message(f"{number}.0"), text_message(f"{number}.1")])
    await a.sync()
    known = type(server.state.agents[AGENT])
    whole = known.page

    def hiding(self: Any, offset: int, limit: int, *, with_children: bool) -> Any:
        found = whole(self, offset, limit, with_children=with_children)
        return [r for r in found if r.doc["metadata"]["cs_c"] not in (2, 3)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(known, "page", hiding)
        await b.sync()
    assert server.requests.count(GET) == 4
    assert texts(await b.get_items()) == [f"{n}.{part}" for n in range(6) for part in range(2)]


async def test_a_lasting_gap_is_reported_and_filled_later(
    device: Devices, server: DevServer
) -> None:
    """A missing operation is reported as absent after its patience, stops nothing, and is shown as
    soon as it comes."""
    a, b = await device("a"), await device("b", options=replace(MANUAL, hole_patience=0.0))
    for number in range(4):
        await a.add_items([text_message(str(number))])
    await a.sync()
    (lost,) = [m for m in server.memories(AGENT) if m["content"] == "1"]
    server.evict(AGENT, [lost["id"]])
    report = await b.sync()
    assert report.absent == 1
    assert b.status().absent == 1
    assert texts(await b.get_items()) == ["0", "2", "3"]
    assert (await a.audit()).healed == 1
    assert await assert_one_history(b, a) == ["0", "1", "2", "3"]


async def test_a_young_gap_is_not_reported_as_absent(device: Devices, server: DevServer) -> None:
    """Before its patience is over a gap is looked for, and not reported."""
    a, b = await device("a"), await device("b", options=replace(MANUAL, hole_patience=60.0))
    for number in range(3):
        await a.add_items([text_message(str(number))])
    await a.sync()
    server.evict(AGENT, lambda m: m["content"] == "1")
    await b.sync()
    assert b.status().absent == 0
    assert server.requests.count(GET) > 0


@pytest.mark.promise(number=5)
async def test_an_incomplete_batch_is_never_shown(device: Devices, server: DevServer) -> None:
    """A batch with a missing memory is not shown in part, and is shown completely once it is
    there."""
    a, b = await device("a"), await device("b")
    await a.add_items([text_message("before")])
    await a.add_items([text_message(f"{number}") for number in range(5)])
    await a.add_items([text_message("after")])
    await a.sync()
    server.evict(AGENT, lambda m: m["content"] == "3")
    await b.sync()
    assert texts(await b.get_items()) == ["before", "after"]
    assert b.status().incomplete == 1
    await a.audit()
    assert await assert_one_history(b, a) == ["before", "0", "1", "2", "3", "4", "after"]


@pytest.mark.promise(number=5)
async def test_an_incomplete_large_item_is_never_shown(device: Devices, server: DevServer) -> None:
    """An item with a missing part is shown once the part comes, and is then equal byte for byte."""
    a, b = await device("a"), await device("b")
    large = text_message('ä😀\\"x' * 20_000)
    await a.add_items([large])
    await a.sync()
    server.evict(AGENT, lambda m: m["metadata"]["cs_j"] == 3)
    await b.sync()
    assert await b.get_items() == []
    await a.audit()
    await b.sync()
    assert await b.get_items() == [large]


async def test_foreign_memories_are_ignored(device: Devices, server: DevServer) -> None:
    """Memories that are not ours are not shown, not counted and not changed."""
    await store_memories(
        device.server.url,
        [
            {"id": "note-1", "content": "a note"},
            {"id": "note-2", "content": "with our tag", "tags": ["cached-session"]},
            {
                "id": "note-3",
                "content": "with metadata",
                "metadata": {"cs_v": 1, "cs_op": "append"},
            },
        ],
    )
    a, b = await device("a"), await device("b")
    await a.add_items([text_message("ours")])
    assert await assert_one_history(a, b) == ["ours"]
    await b.audit()
    await b.clear_session()
    await b.sync()
    assert {"note-1", "note-2", "note-3"} <= set(by_id(server))


NONSENSE: list[dict[str, Any]] = [
    {"metadata": {}},
    {"metadata": {"cs_w": 7}},
    {"metadata": {"cs_c": "x"}},
    {"metadata": {"cs_c": -1}},
    {"metadata": {"cs_c": 10**30}},
    {"metadata": {"cs_s": "zz"}},
    {"metadata": {"cs_s": "f" * 16}},
    {"metadata": {"cs_op": "eat"}},
    {"metadata": {"cs_n": 0}},
    {"metadata": {"cs_n": 10**12}},
    {"metadata": {"cs_i": 5}},
    {"metadata": {"cs_p": 0}},
    {"metadata": {"cs_t": None}},
    {"metadata": {"cs_x": 5}},
    {"metadata": {"cs_x": "{}"}},
    {"metadata": {"cs_e": "00"}},
    {"metadata": {"cs_d": None}},
]


@pytest.mark.parametrize("wrong", NONSENSE, ids=str)
async def test_damaged_memories_are_counted_and_hide_nothing(
    device: Devices, server: DevServer, wrong: dict[str, Any]
) -> None:
    """A memory of ours that the server damaged is counted as unreadable and not shown, and the
    memories beside it are shown."""
    a = await device("a")
    for number in range(3):
        await a.add_items([text_message(str(number))])
    await a.sync()
    (victim,) = [m for m in by_id(server).values() if m["content"] == "1"]
    victim["metadata"] = {**victim["metadata"], **wrong["metadata"]} if wrong["metadata"] else {}
    await store_memories(server.url, [plain(victim)])
    b = await device("b")
    assert texts(await b.get_items()) == ["0", "2"]
    assert b.status().unreadable >= 1
    assert (await a.audit()).healed == 1
    assert await assert_one_history(b, a) == ["0", "1", "2"]


async def test_a_newer_wire_version_is_reported_and_not_misread(
    device: Devices, server: DevServer
) -> None:
    """Memories of a newer wire version are counted as unreadable and not changed."""
    a = await device("a")
    await a.add_items([text_message("old")])
    await a.sync()
    (memory,) = by_id(server).values()
    memory["id"] = memory["id"].replace("cs2-", "cs3-")
    memory["metadata"]["cs_v"] = 3
    await store_memories(server.url, [plain(memory)])
    b = await device("b")
    assert texts(await b.get_items()) == ["old"]
    assert b.status().unreadable == 1
    await b.clear_session()
    await b.sync()
    assert memory["id"] in by_id(server)


def forged(text: str, *, counter: int = 1, kind: Kind = Kind.APPEND) -> list[dict[str, Any]]:
    op = Operation(Dot(WRITER, counter), kind, 1 << 40, 1000, (text,))
    return list(memories_of(op, op.digest(session_key("talk")), "talk"))


async def test_a_dot_with_two_contents_is_counted_and_the_first_stays(
    device: Devices, server: DevServer
) -> None:
    """A second content under the same dot does not change what is shown, and is counted."""
    await store_memories(server.url, forged('{"role":"user","content":"first"}'))
    a = await device("a")
    assert texts(await a.get_items()) == ["first"]
    await store_memories(server.url, forged('{"role":"user","content":"second"}'))
    await a.sync()
    assert texts(await a.get_items()) == ["first"]
    assert a.status().conflicts >= 1


@pytest.mark.parametrize(
    "payload",
    ["", "nonsense", "[]", '{"w":"x"}', '{"w":"aaaaaaaa","c":1,"i":5,"n":2}', "[" * 5000],
)
@pytest.mark.parametrize("kind", [Kind.POP, Kind.CLEAR])
async def test_invalid_removals_remove_nothing(
    device: Devices, server: DevServer, kind: Kind, payload: str
) -> None:
    """A pop or clear with an invalid payload is counted as unreadable, and stops nothing."""
    a = await device("a")
    await a.add_items([text_message("one")])
    await a.sync()
    await store_memories(server.url, forged(payload or "{", kind=kind))
    b = await device("b")
    assert texts(await b.get_items()) == ["one"]
    assert b.status().unreadable >= 1
    await b.add_items([text_message("two")])
    await b.sync()
    await a.sync()
    assert texts(await a.get_items()) == ["one", "two"]


async def test_a_forged_counter_costs_a_bounded_number_of_requests(
    device: Devices, server: DevServer
) -> None:
    """A memory with a counter of a trillion does not make a device look for all operations below
    it."""
    await store_memories(server.url, forged('{"role":"user","content":"last"}', counter=1 << 40))
    a = device.new("a", hydrate=False)
    await a.sync()
    assert texts(await a.get_items()) == ["last"]
    # The first pull of the background and that of the sync may each search for 200 gaps. A search
    # requests a part and a placeholder, under the ids of both wire versions.
    assert server.requests.count(GET) <= 2 * 200 * 4


async def test_pulled_items_are_readable_immediately(device: Devices, server: DevServer) -> None:
    """A session that is in use elsewhere shows new items after each poll, without a call."""
    a = await device("a")
    b = await device("b", options=replace(MANUAL, poll_interval=0.05, poll_interval_idle=0.1))
    for number in range(3):
        await a.add_items([text_message(str(number))])
        await a.flush(timeout=PATIENCE)

        async def shows(number: int = number) -> bool:
            return texts(await b.get_items())[-1:] == [str(number)]

        await wait_until(shows)


async def test_pulled_operations_are_not_sent_back(device: Devices, server: DevServer) -> None:
    """A device does not push operations that it pulled."""
    a, b = await device("a"), await device("b")
    await a.add_items([text_message("one")])
    await a.sync()
    stores = server.requests.count(BATCH)
    await b.sync()
    await b.sync()
    assert server.requests.count(BATCH) == stores
    assert items_on_server(server) == ["one"]


async def test_a_cancelled_sync_does_not_cancel_a_needed_pull(
    device: Devices, server: DevServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An event comes while a pull is under way. A `sync` begins one that will see it, and is
    cancelled. The session is pulled for the event nevertheless, an hour before its next poll."""
    a, b = await device("a"), await device("b")
    replicator = b._engine.loop_host.replicator()
    assert replicator is not None
    plan = replicator.schedule.plan("talk")
    assert plan is not None
    remote, is_sync = replicator.context.remote, ContextVar("is_sync", default=False)
    asks, go_on, syncs = asyncio.Event(), asyncio.Event(), asyncio.Event()
    page = remote.list_memories

    async def held(agent: str, **more: Any) -> Any:
        asks.set()
        await go_on.wait()
        if is_sync.get():
            syncs.set()
            await asyncio.Event().wait()
        return await page(agent, **more)

    async def sync() -> None:
        is_sync.set(True)
        await b.sync()

    monkeypatch.setattr(remote, "list_memories", held)
    replicator.request_pull("talk", replicator.context.runtime.monotonic())
    await asks.wait()
    await a.add_items([text_message("news")])
    await a.flush(timeout=PATIENCE)
    news = replicator.context.runtime.monotonic()
    replicator.request_pull("talk", news)
    syncing = asyncio.ensure_future(sync())
    await wait_until(lambda: plan.started > news)
    # The pull that began before the event ends; its listing is not the requested one.
    go_on.set()
    await syncs.wait()
    await wait_until(lambda: plan.due > news)
    assert plan.last_success < news
    syncing.cancel()
    await wait_until(lambda: plan.last_success > news)
    assert texts(await b.get_items()) == ["news"]
