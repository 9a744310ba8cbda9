from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock

from cached_session import CachedSession, SessionCache, SyncTimeout, Unauthorized
from cached_session.devserver import DevServer
from cached_session.history.ids import agent_id
from cached_session.runtime import Runtime
from tests.replication.devices import (
    BATCH,
    LISTING,
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

SLOW_TO_RETRY = replace(QUICK, backoff_base=0.1, backoff_max=1.0)


async def test_an_unreachable_server_is_reported_and_rarely_asked(
    device: Devices, server: DevServer
) -> None:
    """While the server is down the state is offline with its reason, calls work, and attempts
    become rare. When it is back everything arrives."""
    a = await device("a", options=SLOW_TO_RETRY)
    server.faults.down()
    await a.add_items([text_message("one")])
    await wait_until(lambda: a.status().state == "offline")
    status = a.status()
    assert status.last_error
    assert server.url in status.last_error
    assert status.pending == 1
    server.requests.clear()
    await asyncio.sleep(1.0)
    assert texts(await a.get_items()) == ["one"]
    assert len(server.requests) <= 20
    await wait_until(lambda: len(server.requests))
    server.faults.clear()
    await wait_until(lambda: a.status().pending == 0)
    await wait_until(lambda: a.status().state == "online")
    assert a.status().last_error is None
    assert items_on_server(server) == ["one"]


async def test_a_refused_connection_is_offline_too(device: Devices, server: DevServer) -> None:
    """The state is offline where no server listens, and an explicit sync works as soon as one does:
    it does not wait for a pause of an hour."""
    a = await device("a", options=replace(MANUAL, backoff_base=3600.0, backoff_max=3600.0))
    server.stop()
    await a.add_items([text_message("one")])
    failure = await time_out(a.sync, lambda: a.status().state == "offline")
    assert failure.__cause__ is not None
    assert "sync did not finish in " in str(failure)
    assert server.url in str(failure)
    server.start()
    assert (await a.sync(timeout=PATIENCE)).pushed == 1
    assert a.status().state == "online"


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("date", [False, True])
async def test_retry_after_is_obeyed(
    device: Devices, server: DevServer, status: int, date: bool
) -> None:
    """After a 429 or 503 with Retry-After, in seconds or as a date, nothing is sent before its
    time."""
    a = await device("a", options=QUICK)
    server.faults.status(status, retry_after=3600, retry_after_date=date, route=BATCH)
    await a.add_items([text_message("one")])
    await wait_until(lambda: a.status().last_error)
    assert 3000 < (a.status().retry_in or 0) <= 3600 * 1.1
    await asyncio.sleep(0.3)
    assert server.requests.count(BATCH) == 1
    with pytest.raises(SyncTimeout):
        await a.sync(timeout=0.3)
    assert server.requests.count(BATCH) == 1


async def test_a_success_under_way_does_not_shorten_the_pause(
    device: Devices, server: DevServer
) -> None:
    """A pull that began before the server asked for a pause, and succeeds after it, does not end
    the pause."""
    a = await device("a")
    slow = server.faults.latency(1.0, route=LISTING)
    pulling = asyncio.ensure_future(
        a._engine.loop_host.run(lambda home: home.puller.pull_now("talk"))
    )
    await wait_until(lambda: slow.fired)
    server.faults.unavailable(3600, route=BATCH)
    await a.add_items([text_message("one")])
    await time_out(a.flush, lambda: server.requests.count(BATCH))
    await pulling
    assert (a.status().retry_in or 0) > 3000
    with pytest.raises(SyncTimeout):
        await a.flush(timeout=0.2)
    assert server.requests.count(BATCH) == 1


async def test_work_continues_after_the_pause(device: Devices, server: DevServer) -> None:
    """Pending operations are sent without a call once the pause is over."""
    a = await device("a", options=QUICK)
    server.faults.too_many(1, route=BATCH, count=1)
    began = time.monotonic()
    await a.add_items([text_message("one")])
    await wait_until(lambda: a.status().pending == 0)
    assert time.monotonic() - began >= 1.0
    assert items_on_server(server) == ["one"]


async def test_an_unknown_session_obeys_the_pause_too(device: Devices, server: DevServer) -> None:
    """A session that is not in the journal yet obeys Retry-After like any other."""
    server.faults.too_many(3600, route=LISTING)
    a = device.new("a", options=QUICK, hydrate=False)
    assert await a.get_items() == []
    await asyncio.sleep(0.5)
    assert server.requests.count(LISTING) == 1


@pytest.mark.parametrize("status", [401, 403])
async def test_a_refused_key_is_reported_and_tried_again(
    device: Devices, server: DevServer, status: int
) -> None:
    """A key that the server refuses pauses the session, is reported, raises from sync and flush,
    loses nothing, and is tried again until it works."""
    a = await device("a", options=QUICK)
    fault = server.faults.status(status)
    await a.add_items([text_message("one")])
    await wait_until(lambda: a.status().state == "unauthorized")
    for call in (a.sync, a.flush, a.audit):
        with pytest.raises(Unauthorized, match="stay in the journal"):
            await call()
    assert texts(await a.get_items()) == ["one"]
    assert a.status().pending == 1
    fault.remove()
    await wait_until(lambda: a.status().pending == 0)
    await wait_until(lambda: a.status().state == "online")


async def test_a_revoked_key_works_again_once_it_is_restored(
    device: Devices, server: DevServer
) -> None:
    """A key is refused while the server does not know it, and works again once it does."""
    server.add_key("right")
    a = await device("a", api_key="right")
    await a.add_items([text_message("one")])
    await a.sync()
    server.add_key("other")
    server.remove_key("right")
    await a.add_items([text_message("two")])
    with pytest.raises(Unauthorized):
        await a.sync(timeout=PATIENCE)
    server.add_key("right")
    await a.sync(timeout=PATIENCE)
    assert items_on_server(server) == ["one", "two"]


async def test_a_read_only_key_shows_the_history(device: Devices, server: DevServer) -> None:
    """With a key that may read and not write, the history arrives, and nothing is parked."""
    server.add_key("write")
    server.add_key("read", scope="read")
    a = await device("a", api_key="write")
    await a.add_items([text_message("one")])
    await a.sync()
    b = device.new("b", api_key="read", options=QUICK)
    assert texts(await b.get_items()) == ["one"]
    await b.add_items([text_message("two")])
    await wait_until(lambda: b.status().state == "unauthorized")
    assert (b.status().pending, b.status().parked) == (1, 0)


async def test_failing_writes_are_reported_while_reads_work(
    device: Devices, server: DevServer
) -> None:
    """A server that answers reads and fails every write is not asked more and more often."""
    a = await device("a", options=SLOW_TO_RETRY)
    server.faults.status(500, route=BATCH)
    await a.add_items([text_message("one")])
    await wait_until(lambda: a.status().last_error)
    server.requests.clear()
    await asyncio.sleep(1.0)
    assert server.requests.count(BATCH) <= 15
    assert a.status().pending == 1


async def test_a_failing_session_does_not_stop_another(
    device: Devices, server: DevServer, tmp_path: object
) -> None:
    """While the server fails the listing of one session, another one on the same journal syncs in
    both directions."""
    server.faults.status(400, route=f"GET /v1/agents/{agent_id('bad')}/memories")
    async with SessionCache(tmp_path / "many.db", url=server.url, options=QUICK) as cache:  # type: ignore[operator]
        bad, good = cache.session("bad", hydrate=False), cache.session("good")
        await bad.get_items()
        await good.add_items([text_message("one")])
        await wait_until(lambda: items_on_server(server, agent_id("good")) == ["one"])
        other = await device("other", session_id="good")
        await other.add_items([text_message("two")])
        await other.sync()

        async def shows() -> bool:
            return texts(await good.get_items()) == ["one", "two"]

        await wait_until(shows)
        assert good.status().state == "online"


async def test_a_slow_session_does_not_delay_another(
    device: Devices, server: DevServer, tmp_path: object
) -> None:
    """While the listing of one session is slow, another session is pulled and pushed."""
    other = await device("other", session_id="quick")
    await other.add_items([text_message("one")])
    await other.sync()
    hanging = server.faults.latency(3600, route=f"GET /v1/agents/{agent_id('slow')}/memories")
    async with SessionCache(tmp_path / "many.db", url=server.url, options=QUICK) as cache:  # type: ignore[operator]
        slow, quick = cache.session("slow", hydrate=False), cache.session("quick")
        await slow.get_items()
        await wait_until(lambda: hanging.fired)
        assert texts(await quick.get_items()) == ["one"]
        assert not slow.status().hydrated


async def test_a_slow_push_does_not_delay_another(
    device: Devices, server: DevServer, tmp_path: object
) -> None:
    """While one session's store request is slow, another session's items arrive."""
    async with SessionCache(tmp_path / "many.db", url=server.url, options=QUICK) as cache:  # type: ignore[operator]
        slow, quick = cache.session("slow", hydrate=False), cache.session("quick", hydrate=False)
        await slow.sync(timeout=PATIENCE)
        await quick.sync(timeout=PATIENCE)
        fault = server.faults.latency(3600, route=BATCH, count=1)
        await slow.add_items([text_message("slow")])
        await wait_until(lambda: fault.fired)
        await quick.add_items([text_message("one")])
        await wait_until(lambda: items_on_server(server, agent_id("quick")) == ["one"])
        assert slow.status().pending == 1


async def test_a_pause_of_a_wrong_clock_does_not_block(device: Devices, server: DevServer) -> None:
    """A pause that was stored by a clock a year ahead is void once the clock is right."""
    ahead = Runtime(wall_ms=lambda: int(time.time() * 1000) + 365 * 86_400_000)
    a = device.new("a", options=QUICK, runtime=ahead, hydrate=False)
    server.faults.down()
    await a.add_items([text_message("one")])
    await wait_until(lambda: a.status().state == "offline")
    await a.close()
    server.faults.clear()
    again = device.new("a", options=QUICK)
    await again.get_items()
    await wait_until(lambda: again.status().pending == 0)
    await wait_until(lambda: again.status().state == "online")


async def test_a_full_quota_parks_nothing(device: Devices, server: DevServer) -> None:
    """A full quota of the server is reported, nothing is parked, and work continues when there is
    space."""
    a = await device("a", options=QUICK)
    fault = server.faults.status(413, code="QUOTA_EXCEEDED", message="the quota is full")
    await a.add_items([text_message("one")])
    await wait_until(lambda: "quota" in str(a.status().last_error))
    assert (a.status().pending, a.status().parked) == (1, 0)
    fault.remove()
    await wait_until(lambda: a.status().pending == 0)


@asynccontextmanager
async def answering(status: str, kind: str, body: bytes) -> AsyncIterator[str]:
    """Run a web server that is not Dakera and gives the same answer to everything, and return its
    URL."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            writer.close()  # the client has disconnected
            return
        head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
        writer.write(head.encode() + b"Connection: close\r\n\r\n" + body)
        await writer.drain()
        writer.close()

    web = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with web:
        yield f"http://127.0.0.1:{web.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize(
    ("status", "kind", "body"),
    [
        ("404 Not Found", "text/html", b"<h1>not here</h1>"),
        ("404 Not Found", "application/json", b'{"detail":"Not Found"}'),
        ("404 Not Found", "text/plain", b""),
        ("200 OK", "text/html", b"<h1>welcome</h1>"),
        ("200 OK", "application/json", b'{"hello":"world"}'),
        ("200 OK", "application/json", b"[]"),
        ("302 Found", "text/html", b""),
        ("405 Method Not Allowed", "text/html", b""),
        ("400 Bad Request", "text/html", b"<h1>bad</h1>"),
        ("413 Request Entity Too Large", "text/html", b"<h1>nginx</h1>"),
    ],
)
async def test_a_server_that_is_not_dakera_parks_and_removes_nothing(
    device: Devices, status: str, kind: str, body: bytes
) -> None:
    """A web server that is not Dakera is reported as a failure with a reason. No operation is
    parked, acknowledged or removed because of it."""
    async with answering(status, kind, body) as url:
        a = device.new("a", url=url, options=MANUAL, hydrate=False)
        await a.add_items([text_message("one"), text_message("two")])
        with pytest.raises(SyncTimeout):
            await a.sync(timeout=1.5)
        await wait_until(lambda: a.status().last_error)
        found = a.status()
        assert (found.pending, found.parked, found.items) == (1, 0, 2)
        assert found.last_error
        assert not found.hydrated or body == b"[]"
        await a.close()


async def test_a_sync_without_a_timeout_waits_for_the_server(
    device: Devices, server: DevServer
) -> None:
    """A sync without a timeout tries until the server is back."""
    a = await device("a")
    await a.add_items([text_message("one")])
    server.faults.down(lasting=0.5)
    report = await a.sync()
    assert report.pushed == 1
    assert await assert_one_history(a, device.new("b")) == ["one"]


async def test_a_starting_server_is_asked_again(device: Devices, server: DevServer) -> None:
    """A server that loads its models is asked again at the time that it named, and then everything
    arrives."""
    a = await device("a", options=QUICK)
    server.faults.starting(1.0)
    await a.add_items([text_message("one")])
    await wait_until(lambda: a.status().state == "offline")
    await wait_until(lambda: a.status().pending == 0)


async def test_calls_do_not_wait_for_a_hanging_server(device: Devices, server: DevServer) -> None:
    """Reads and writes do not wait while the server hangs."""
    a = await device("a", options=QUICK)
    await a.get_items()
    hanging = server.faults.latency(3600)
    await a.add_items([text_message("waits")])
    await wait_until(lambda: hanging.fired)
    for number in range(20):
        await a.add_items([text_message(str(number))])
        await a.get_items(limit=5)
        await a.pop_item()
    assert texts(await a.get_items()) == ["waits"]
    assert a.status().pending > 0


async def test_a_queue_that_no_process_sends_is_an_error(server: DevServer, tmp_path: Path) -> None:
    """Another process holds the replicator lock and does not push. No request fails and no pause
    runs, but the status reports that nothing is sent, until a process sends it."""
    journal, moved = tmp_path / "stuck.db", 0
    holder = FileLock(f"{journal}.lock")
    holder.acquire()
    runtime = Runtime(wall_ms=lambda: time.time_ns() // 1_000_000 + moved)
    session = CachedSession.from_url(
        "stuck", url=server.url, journal=journal, options=QUICK, runtime=runtime
    )
    async with session:
        await session.add_items([text_message("one")])
        assert session.status().last_error is None
        moved = 200_000
        error = session.status().last_error
        assert error is not None
        assert "pending, and nothing was sent for 200 s" in error
        assert str(journal) in error
        holder.release()
        await wait_until(lambda: session.status().pending == 0)
        assert session.status().last_error is None


async def test_a_second_paused_session_pauses_all(server: DevServer, tmp_path: Path) -> None:
    """The first 429 pauses its session. The second shows that the limit applies to all: a third
    session sends nothing, and its status has the duration and the reason."""
    server.faults.too_many(3600, route=BATCH)
    async with SessionCache(tmp_path / "many.db", url=server.url, options=QUICK) as cache:
        one, two, three = (cache.session(name, hydrate=False) for name in ("one", "two", "three"))
        await one.add_items([text_message("1")])
        await wait_until(lambda: one.status().retry_in)
        assert three.status().retry_in is None
        await two.add_items([text_message("2")])
        await wait_until(lambda: three.status().retry_in)
        await three.add_items([text_message("3")])
        await asyncio.sleep(0.3)
        assert server.requests.count(BATCH) == 2
        status = three.status()
        assert status.state == "offline"
        assert (status.retry_in or 0) > 3000
        assert "429" in str(status.last_error)


async def test_a_pause_survives_a_kill_and_ends_on_time(
    device: Devices, server: DevServer, tmp_path: Path
) -> None:
    """A process is killed during a pause that the server asked for. The next one reads duration and
    reason from the stored row, keeps the pause, and continues when it is over."""
    server.faults.unavailable(3600, route=BATCH)
    journal = tmp_path / "a.db"
    async with running_process(journal, server.url, "one") as other:
        await wait_until(lambda: _pause_rows(journal))
        other.kill()
        await other.wait()
    again = device.new("a", options=QUICK, hydrate=False)
    status = again.status()
    assert (status.state, status.pending) == ("offline", 1)
    assert (status.retry_in or 0) > 3000
    assert "503" in str(status.last_error)
    await again.get_items()
    await asyncio.sleep(0.3)
    assert server.requests.count(BATCH) == 1
    await again.close()
    server.faults.clear()
    later = Runtime(wall_ms=lambda: int(time.time() * 1000) + 4000 * 1000)
    last = device.new("a", options=QUICK, hydrate=False, runtime=later)
    await last.get_items()
    await wait_until(lambda: items_on_server(server) == ["one"])
    await wait_until(lambda: _pause_rows(journal) == [] and last.status().state == "online")


def _pause_rows(journal: Path) -> list[tuple[int, int]]:
    """Return the stored rows of all pauses."""
    try:
        with closing(sqlite3.connect(f"{journal.as_uri()}?mode=ro", uri=True)) as conn:
            return conn.execute("SELECT session, until_ms FROM gates").fetchall()
    except sqlite3.OperationalError:
        return []  # not created yet


async def test_a_process_killed_during_a_request_leaves_no_pause(
    device: Devices, server: DevServer, tmp_path: Path
) -> None:
    """After a kill in the middle of a request the next process sends immediately, and what had
    arrived is stored once."""
    fault = server.faults.latency(20, after_commit=True, route=BATCH, count=1)
    journal = tmp_path / "a.db"
    async with running_process(journal, server.url, "one") as other:
        await wait_until(lambda: fault.fired)
        other.kill()
        await other.wait()
    assert _pause_rows(journal) == []
    again = device.new("a", options=QUICK, hydrate=False)
    await again.get_items()
    await wait_until(lambda: again.status().pending == 0)
    assert await assert_one_history(again, device.new("late")) == ["one"]


async def test_a_rotated_key_loses_and_parks_nothing(device: Devices, server: DevServer) -> None:
    """The old key stops working between two requests: nothing is lost or parked, the state reports
    it, and a session with the new key sends what is pending."""
    server.add_key("old")
    a = device.new("a", api_key="old", options=QUICK)
    for number in range(5):
        await a.add_items([text_message(f"{number}")])
        if number == 2:
            await wait_until(lambda: a.status().pending == 0)
            server.add_key("new")
            server.remove_key("old")
    await wait_until(lambda: a.status().state == "unauthorized")
    assert (a.status().pending, a.status().parked) == (2, 0)
    assert texts(await a.get_items()) == ["0", "1", "2", "3", "4"]
    await a.close()
    again = device.new("a", api_key="new", options=QUICK)
    await again.get_items()
    await wait_until(lambda: items_on_server(server) == ["0", "1", "2", "3", "4"])
    await wait_until(lambda: again.status().state == "online")
