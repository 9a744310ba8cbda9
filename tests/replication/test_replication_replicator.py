from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from dakera import AsyncDakeraClient

from cached_session import (
    CachedSession,
    CachedSessionError,
    InvalidArgument,
    SessionCache,
    SessionClosed,
)
from cached_session.devserver import DevServer
from tests.replication.devices import (
    AGENT,
    BATCH,
    MANUAL,
    PATIENCE,
    QUICK,
    Devices,
    assert_one_history,
    items_on_server,
    running_process,
    text_message,
    texts,
    time_out,
    wait_until,
)


async def test_one_process_pushes_for_all_and_another_takes_over(
    device: Devices, server: DevServer, tmp_path: Path
) -> None:
    """Operations of a second process are pushed by the process that replicates. When that one is
    killed, the second takes over without a call."""
    async with running_process(tmp_path / "a.db", server.url, "theirs") as other:
        await wait_until(lambda: items_on_server(server) == ["theirs"])
        a = device.new("a", options=replace(QUICK, watch_interval=0.1), hydrate=False)
        await a.add_items([text_message("mine")])
        await wait_until(lambda: items_on_server(server) == ["theirs", "mine"])
        replicator = a._engine.loop_host.replicator()
        assert replicator is None or not replicator.leader.is_leader
        other.kill()
        await other.wait()
        await a.add_items([text_message("after")])
        await wait_until(lambda: items_on_server(server) == ["theirs", "mine", "after"])
    assert texts(await a.get_items()) == ["theirs", "mine", "after"]


@pytest.mark.promise(number=1)
async def test_a_killed_process_loses_nothing(
    device: Devices, server: DevServer, tmp_path: Path
) -> None:
    """Items of a process that was killed before it could send them are sent by the next one."""
    server.faults.lose_response(route=BATCH)
    async with running_process(tmp_path / "a.db", server.url, "one", "two") as other:
        other.kill()
        await other.wait()
    server.faults.clear()
    a = device.new("a", options=QUICK)
    await a.get_items()
    await wait_until(lambda: a.status().pending == 0)
    assert items_on_server(server) == ["one", "two"]
    assert await assert_one_history(a, device.new("b")) == ["one", "two"]


async def test_work_continues_after_a_restart_of_the_server(
    device: Devices, server: DevServer
) -> None:
    """After a restart of the server on the same port, everything continues without a call."""
    a, b = await device("a", options=QUICK), await device("b", options=QUICK)
    for number in range(3):
        await a.add_items([text_message(str(number))])
        server.restart()
    await wait_until(lambda: items_on_server(server) == ["0", "1", "2"])

    async def shows() -> bool:
        return texts(await b.get_items()) == ["0", "1", "2"]

    await wait_until(shows)


async def test_close_leaves_unsent_operations_queued(device: Devices, server: DevServer) -> None:
    """Close ends in time while the server is down, and a later session sends the rest."""
    a = device.new("a", options=QUICK, hydrate=False)
    server.stop()
    await a.add_items([text_message("one")])
    await asyncio.wait_for(a.close(), PATIENCE)
    with pytest.raises(SessionClosed):
        await a.get_items()
    server.start()
    again = device.new("a", options=QUICK)
    assert again.status().pending == 1
    assert texts(await again.get_items()) == ["one"]
    await wait_until(lambda: items_on_server(server) == ["one"])


async def test_close_with_a_hanging_server_ends(device: Devices, server: DevServer) -> None:
    """Close waits for a server that hangs no longer than close_timeout."""
    a = await device("a", options=QUICK)
    hanging = server.faults.latency(3600)
    await a.add_items([text_message("one")])
    await wait_until(lambda: hanging.fired)
    await asyncio.wait_for(a.close(), PATIENCE)


async def test_close_sends_pending_operations(device: Devices, server: DevServer) -> None:
    """Close first sends what is pending, where the server answers."""
    a = await device("a", options=replace(MANUAL, close_timeout=PATIENCE))
    await a.add_items([text_message("one")])
    await a.close()
    assert items_on_server(server) == ["one"]


async def test_close_leaves_no_task(device: Devices, server: DevServer) -> None:
    """After close no task of the library is left, whatever it was doing."""
    a = await device("a", options=QUICK)
    await a.add_items([text_message("one")])
    await a.close()
    server.stop()
    b = device.new("b", options=QUICK, hydrate=False)
    await b.add_items([text_message("one")])
    await b.close()
    assert [t for t in asyncio.all_tasks() if t is not asyncio.current_task()] == []
    server.start()


async def test_an_injected_client_stays_open(
    device: Devices, server: DevServer, tmp_path: Path
) -> None:
    """A client of the caller works after close, with the retries that the caller chose."""
    async with AsyncDakeraClient(server.url, max_retries=2) as client:
        session = device.keep(
            CachedSession("talk", client=client, journal=tmp_path / "own.db", options=QUICK)
        )
        await session.add_items([text_message("one")])
        await session.flush(timeout=PATIENCE)
        await session.close()
        assert len(await client.agent_memories(AGENT)) == 1
        assert client._retry_config.max_retries == 2


async def test_two_clients_share_one_journal(
    device: Devices, server: DevServer, tmp_path: Path
) -> None:
    """Two sessions with their own clients share a journal, and closing one does not stop the
    other."""
    first, second = AsyncDakeraClient(server.url), AsyncDakeraClient(server.url)
    path = tmp_path / "own.db"
    one = device.keep(CachedSession("one", client=first, journal=path, options=QUICK))
    two = device.keep(CachedSession("two", client=second, journal=path, options=QUICK))
    await one.add_items([text_message("1")])
    await two.add_items([text_message("2")])
    await one.flush(timeout=PATIENCE)
    await two.flush(timeout=PATIENCE)
    await one.close()
    await first.close()
    await two.add_items([text_message("3")])
    await two.flush(timeout=PATIENCE)
    assert two.status().pending == 0
    await two.close()
    await second.close()
    assert len(server.agents()) == 2


async def test_a_second_server_for_an_open_journal_is_refused(
    device: Devices, server: DevServer
) -> None:
    """While a journal is open with one server, another one is refused with a clear error."""
    a = await device("a")
    with pytest.raises(InvalidArgument, match=r"another journal for .*elsewhere\.example"):
        device.new("a", url="http://elsewhere.example:3000")
    await a.add_items([text_message("one")])


@pytest.mark.parametrize("is_local", [False, True])
async def test_another_server_gets_nothing_unasked(
    device: Devices, server: DevServer, is_local: bool
) -> None:
    """A journal that syncs with one server is refused with another one, by an error that names both
    and the way out. Without a server, and with its own one, it works as before."""
    a = await device("a")
    await a.add_items([text_message("secret")])
    await a.sync(timeout=PATIENCE)
    await a.close()
    with DevServer() as other:
        refused = device.new("a", url=other.url)

        async def add() -> None:
            await refused.add_items([text_message("refused")])

        local = CachedSession("talk", journal=device.root / "a.db") if is_local else None
        for call in (
            refused.get_items,
            refused.sync,
            add,
        ):
            with pytest.raises(InvalidArgument, match="move=True") as error:
                await call()
            assert server.url in str(error.value)
            assert other.url in str(error.value)
        if local is not None:
            assert texts(await local.get_items()) == ["secret"]
            await local.add_items([text_message("local")])
            await local.close()
        await refused.close()
        assert other.agents() == []
    a = device.new("a")
    await a.sync(timeout=PATIENCE)
    assert items_on_server(server) == ["secret", "local"][: 1 + is_local]


async def test_an_empty_second_server_gets_everything(
    device: Devices, server: DevServer, caplog: pytest.LogCaptureFixture
) -> None:
    """A journal that is opened with another, empty server sends it the whole history, including
    what it had pulled from other devices, and logs this once."""
    a, b = await device("a"), await device("b")
    await b.add_items([text_message("theirs")])
    await b.sync()
    await a.sync()
    await a.add_items([text_message("one"), text_message("two")])
    await a.pop_item()
    await a.sync()
    await a.close()
    with DevServer() as fresh:
        moved = device.new("a", url=fresh.url, move=True)
        assert texts(await moved.get_items()) == ["theirs", "one"]
        await moved.sync(timeout=PATIENCE)
        assert items_on_server(fresh) == ["theirs", "one"]
        told = [record for record in caplog.records if "the journal syncs with" in record.message]
        assert len(told) == 1
        late = device.new("late", url=fresh.url)
        assert await assert_one_history(moved, late) == ["theirs", "one"]
        await moved.close()
        await late.close()


SECRET = "the launch code is 0000"


async def test_content_none_keeps_text_out_of_the_index(device: Devices, server: DevServer) -> None:
    """With content="none" no memory's content has the text, and other devices show it."""
    a, b = await device("a", content="none"), await device("b")
    await a.add_items([text_message(SECRET), {"type": "function_call_output", "output": SECRET}])
    await a.add_items([text_message(SECRET * 4000)])
    await a.sync()
    assert not any(SECRET in memory["content"] for memory in server.memories(AGENT))
    assert not any(SECRET in tag for memory in server.memories(AGENT) for tag in memory["tags"])
    await b.sync()
    assert await b.get_items() == await a.get_items()
    server.evict(AGENT, lambda _: True)
    assert (await b.audit()).healed == 2
    assert not any(SECRET in memory["content"] for memory in server.memories(AGENT))


@pytest.mark.parametrize("letter", ["x", "ä", "😀", '"', "\\", "\x00", "\ud800"])
async def test_large_items_round_trip(device: Devices, server: DevServer, letter: str) -> None:
    """An item of a megabyte of any characters arrives byte for byte."""
    a, b = await device("a"), await device("b")
    size = 1_000_000 if letter == "x" else 200_000
    item = {**text_message(letter * size), "big": 2**70, "float": 1e-7, "keys": {"z": 1, "a": None}}
    await a.add_items([text_message("before"), item, text_message("after")])
    await a.sync(timeout=PATIENCE)
    await b.sync(timeout=PATIENCE)
    assert await b.get_items() == [text_message("before"), item, text_message("after")]
    assert list((await b.get_items())[1]["keys"]) == ["z", "a"]


KEY = "dk-very-secret-0123456789"


def bytes_of_files(directory: Path) -> bytes:
    """Return the contents of all files in a directory."""
    return b"".join(path.read_bytes() for path in directory.iterdir())


async def test_the_key_appears_nowhere(
    device: Devices, server: DevServer, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """The API key is in no log line, repr, status, error or journal."""
    caplog.set_level(logging.DEBUG)
    server.add_key("another")
    a = device.new("a", api_key=KEY, options=QUICK)
    await a.add_items([text_message("one")])
    told: list[object] = [a, a._engine, a._spec]
    for call in (a.sync, a.flush, a.audit):
        with pytest.raises(CachedSessionError) as failure:
            await call()
        error: BaseException | None = failure.value
        while error is not None:
            told += [error, vars(error)]
            error = error.__cause__ or error.__context__
    told.append(a.status())
    server.stop()
    lost = await time_out(a.sync, lambda: a.status().state == "offline")
    told += [lost, lost.__cause__, a.status()]
    cache = SessionCache(tmp_path / "c.db", url=server.url, api_key=KEY)
    told.append(cache)
    await cache.close()
    server.start()
    await a.close()
    assert not any(KEY in repr(one) or KEY in str(one) for one in told)
    assert KEY not in caplog.text
    assert KEY.encode() not in bytes_of_files(tmp_path)


async def test_the_official_client_reads_a_conversation(device: Devices, server: DevServer) -> None:
    """Through the official client the memories are readable text, with roles as tags, and recall
    finds them."""
    a = await device("a")
    await a.add_items(
        [
            text_message("Where is my parcel?"),
            {
                "type": "function_call",
                "call_id": "c1",
                "name": "find_parcel",
                "arguments": '{"number": 7}',
            },
            {"type": "function_call_output", "call_id": "c1", "output": "in Lisbon"},
            {
                "role": "assistant",
                "type": "message",
                "content": [{"type": "output_text", "text": "Your parcel is in Lisbon."}],
            },
        ]
    )
    await a.add_items([text_message("Forget it")])
    await a.pop_item()
    await a.sync()
    async with AsyncDakeraClient(server.url) as client:
        listed = await client.agent_memories(AGENT)
        recalled = await client.recall(AGENT, "parcel Lisbon", top_k=1)
    memories = {memory["content"]: memory["tags"] for memory in listed}
    assert memories == {
        "Where is my parcel?": ["cached-session", "cs-user"],
        'find_parcel({"number": 7})': ["cached-session", "cs-tool"],
        "in Lisbon": ["cached-session", "cs-tool"],
        "Your parcel is in Lisbon.": ["cached-session", "cs-assistant"],
        "(removed an item)": ["cached-session", "cs-op"],
    }
    assert recalled.memories[0].content == "Your parcel is in Lisbon."


async def test_recall_finds_entries_and_falls_back(device: Devices, server: DevServer) -> None:
    """Recall returns entries that the server found, and without a server those of the journal."""
    a = await device("a")
    await a.add_items([text_message("the blue parcel"), text_message("the red balloon")])
    await a.sync()
    found = await a.recall("red balloon", limit=1)
    assert (found.source, texts([entry.item for entry in found.entries])) == (
        "server",
        ["the red balloon"],
    )
    server.stop()
    found = await a.recall("balloon")
    assert (found.source, texts([entry.item for entry in found.entries])) == (
        "local",
        ["the red balloon"],
    )
    server.start()


async def test_recall_shows_items_of_this_session_only(device: Devices, server: DevServer) -> None:
    """Recall shows no bookkeeping, no parts of items and no other session, whatever their rank
    is."""
    a = await device("a")
    await a.add_items([text_message("she removed an item from the list")])
    for number in range(12):
        await a.add_items([text_message(f"word {number}")])
        await a.pop_item()
    other = device.new("a", session_id="other")
    await other.add_items([text_message("we removed an item")])
    await a.add_items([text_message("last")])
    await other.sync(timeout=PATIENCE)
    await a.sync(timeout=PATIENCE)
    found = await a.recall("removed an item", limit=1)
    assert found.source == "server"
    assert [(entry.rank, entry.item["content"]) for entry in found.entries] == [
        (0, "she removed an item from the list")
    ]


async def test_recall_with_limit_zero_is_empty(device: Devices, server: DevServer) -> None:
    """A limit of zero or less returns nothing and sends no request."""
    a = await device("a")
    await a.add_items([text_message("the red balloon")])
    await a.sync()
    for limit in (0, -1):
        assert (await a.recall("balloon", limit=limit)).entries == []
    assert server.requests.count("POST /v1/memory/recall") == 0


async def test_recall_without_text_on_the_server_is_a_search(
    device: Devices, server: DevServer
) -> None:
    """With ``content="none"`` the server has no text to find, so that it is not asked."""
    a = await device("a", content="none")
    await a.add_items([text_message("the red balloon")])
    await a.sync()
    found = await a.recall("balloon")
    assert (found.source, texts([entry.item for entry in found.entries])) == (
        "local",
        ["the red balloon"],
    )
    assert server.requests.count("POST /v1/memory/recall") == 0


@pytest.mark.parametrize("status", [400, 403, 404, 405, 500, 501])
async def test_a_server_without_recall_causes_no_pause(
    device: Devices, server: DevServer, status: int
) -> None:
    """Recall is a local search then, and everything else works as before."""
    a = await device("a")
    await a.add_items([text_message("the red balloon")])
    await a.sync()
    with server.faults.status(status, route="POST /v1/memory/recall", code="ROUTE_NOT_FOUND"):
        found = await a.recall("balloon")
        assert (found.source, len(found.entries)) == ("local", 1)
        status_now = a.status()
        assert (status_now.state, status_now.last_error) == ("online", None)
        await a.add_items([text_message("more")])
        await a.flush(timeout=PATIENCE)
    assert (await a.recall("balloon")).source == "server"


async def test_recall_does_not_ask_an_unreachable_server(
    device: Devices, server: DevServer
) -> None:
    """While a pause runs, recall answers from the journal without a request of its own."""
    a = await device("a")
    await a.add_items([text_message("the red balloon")])
    await a.sync()
    server.faults.too_many(retry_after=600)
    assert (await a.recall("balloon")).source == "local"
    asked = server.requests.count("POST /v1/memory/recall")
    server.faults.clear()
    again = await a.recall("balloon")
    assert (again.source, texts([entry.item for entry in again.entries])) == (
        "local",
        ["the red balloon"],
    )
    assert server.requests.count("POST /v1/memory/recall") == asked == 1


async def test_a_burst_of_writes_is_sent_in_one_request(device: Devices, server: DevServer) -> None:
    """Items added in quick succession are sent in one request."""
    a = await device("a", options=replace(QUICK, push_delay=2.0, watch_interval=3600.0))
    await asyncio.gather(*(a.add_items([text_message(str(number))]) for number in range(100)))
    await wait_until(lambda: a.status().pending == 0)
    assert server.requests.count(BATCH) <= 2
    assert len(items_on_server(server)) == 100


async def test_many_sessions_share_one_replicator(
    device: Devices, server: DevServer, tmp_path: Path
) -> None:
    """Thirty sessions of one cache are synced together, and each has its own history."""
    async with SessionCache(tmp_path / "many.db", url=server.url, options=QUICK) as cache:
        sessions = [cache.session(f"user-{number}") for number in range(30)]
        for number, session in enumerate(sessions):
            await session.add_items([text_message(f"I am {number}")])
        report = await cache.sync(timeout=PATIENCE)
        assert report.pending == 0
        assert len(server.agents()) == 30
        assert {info.session_id for info in await cache.sessions()} == {
            f"user-{number}" for number in range(30)
        }
    async with httpx.AsyncClient(base_url=server.url) as http:
        assert len((await http.get("/v1/agents")).json()) == 30
    b = device.new("b", session_id="user-7", options=MANUAL)
    assert texts(await b.get_items()) == ["I am 7"]


async def test_a_wrong_url_changes_nothing(
    device: Devices, server: DevServer, tmp_path: Path
) -> None:
    """Only a server that answers replaces the one that the journal knows, also if the journal may
    move."""
    journal = tmp_path / "typo.db"
    async with CachedSession.from_url("typo", url=server.url, journal=journal) as session:
        await session.add_items([text_message("one")])
        await session.sync(timeout=PATIENCE)
    nowhere = "http://127.0.0.1:9"
    moving = CachedSession.from_url("typo", url=nowhere, journal=journal, move=True)
    async with moving as session:
        await time_out(session.sync, lambda: session.status().last_error)
        assert session.status().pending == 0
    stored = server.requests.count(BATCH)
    async with CachedSession.from_url("typo", url=server.url, journal=journal) as session:
        assert (await session.sync(timeout=PATIENCE)).pushed == 0
    assert server.requests.count(BATCH) == stored
