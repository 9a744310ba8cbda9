from __future__ import annotations

import asyncio
import re
import sys
import threading
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cached_session import CachedSession
from cached_session.devserver import DevServer
from tests.replication.devices import (
    PATIENCE,
    QUICK,
    Devices,
    assert_one_history,
    items_on_server,
    text_message,
    time_out,
    wait_until,
)
from tests.replication.fault_lines import FAULTS, NAME, Fault, Line, Names

SHORT = replace(QUICK, request_timeout=2.0, connect_timeout=2.0, audit_interval=0.3)
HELD_UP_SECONDS = 0.75
"""Seconds within which every call returns. Much shorter than any network timeout."""


class RunningTime:
    """Counts the time in which this process could run, so that a stall of the machine does not
    count as a wait of the call."""

    TICK_SECONDS = 0.01

    def __init__(self) -> None:
        self.seconds = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._count)

    def _count(self) -> None:
        while not self._over.wait(self.TICK_SECONDS):
            self.seconds += self.TICK_SECONDS

    def __enter__(self) -> RunningTime:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


async def _calls(session: CachedSession, first: int, count: int) -> list[float]:
    """Make every kind of call repeatedly, and return the duration of each, in order."""
    with RunningTime() as awake:
        return await _timed(session, range(first, first + count), awake)


async def _timed(session: CachedSession, numbers: Iterable[int], awake: RunningTime) -> list[float]:
    taken = []
    for number in numbers:
        for call in (
            session.add_items([text_message(f"{number}"), text_message("popped")]),
            session.get_items(limit=5),
            session.pop_item(),
            session.get_items(),
            session.entries(limit=5),
        ):
            began = awake.seconds
            await call
            taken.append(awake.seconds - began)
        session.status()
    return taken


@asynccontextmanager
async def broken(
    server: DevServer, fault: Fault, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Line, Names]]:
    """Return a line that can have this fault."""
    line = Line(server, directory if fault.tls else None)
    if line.tls is not None:
        monkeypatch.setenv("SSL_CERT_FILE", str(line.tls.trusted))
    with Names().patched() as names:
        async with line.running():
            yield line, names


async def done(outcome: Any) -> None:
    """Return the result of a step of the table, awaited if it is awaitable."""
    if asyncio.iscoroutine(outcome):
        await outcome


@pytest.mark.promise(number=2)
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
async def test_a_network_fault_delays_no_call_and_loses_nothing(
    device: Devices,
    server: DevServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: Fault,
) -> None:
    """Under each fault every call returns without waiting for the network, and the state has the
    reason. After the fault each item is stored once, on the server and on another device, and
    popped items are gone."""
    async with broken(server, fault, tmp_path, monkeypatch) as (line, names):
        a = device.new("a", options=SHORT, url=line.url(fault.host))
        await _calls(a, 0, 10)
        await a.sync(timeout=PATIENCE)
        line.backup = server.snapshot()
        await _calls(a, 10, 5)
        await a.sync(timeout=PATIENCE)
        await done(fault.begin(line, names))
        taken = await _calls(a, 15, 5)
        if fault.says is not None:
            await wait_until(lambda: a.status().state == "offline")
            taken += await _calls(a, 20, 5)
            assert a.status().pending >= 20
            await wait_until(lambda: re.search(fault.says, str(a.status().last_error)))
            assert line.url(fault.host) in str(a.status().last_error)
        else:
            taken += await _calls(a, 20, 5)
        assert max(taken) < HELD_UP_SECONDS, max(taken)
        await done(fault.end(line, names))
        wanted = [f"{number}" for number in range(25)]
        await wait_until(lambda: a.status().pending == 0)
        await wait_until(lambda: items_on_server(server) == wanted)
        await wait_until(lambda: a.status().last_error is None)
        assert await assert_one_history(a, device.new("late")) == wanted


async def test_a_hanging_resolver_uses_no_thread_of_the_program(
    device: Devices, server: DevServer
) -> None:
    """However often a name is looked up, one thread waits for the resolver, none of the event
    loop's pool does, and close does not wait."""
    with Names().patched() as names:
        async with Line(server).running() as line:
            options = replace(SHORT, connect_timeout=0.4, request_timeout=PATIENCE)
            a = device.new("a", options=options, url=line.url(NAME))
            await _calls(a, 0, 5)
            await a.sync(timeout=PATIENCE)
            names.mode = "hangs"
            line.cut()
            await a.add_items([text_message("apart")])
            for _ in range(2):
                await time_out(a.sync, lambda: "looking up localhost" in str(a.status().last_error))
            assert names.hanging == 1
            assert await asyncio.wait_for(asyncio.to_thread(lambda: "free"), 20) == "free"
            await a.close()
            assert names.hanging == 1


@pytest.mark.promise(number=2)
async def test_a_used_up_thread_pool_delays_neither_calls_nor_a_sync(
    device: Devices, server: DevServer
) -> None:
    """While the tools of the program use all threads of the event loop's pool, calls are as quick
    as before, and a sync with large answers works."""
    done = threading.Event()
    a = device.new("a", options=SHORT)
    b = device.new("b", options=SHORT)
    await b.add_items([text_message(f"{number} " + "x" * 1000) for number in range(100)])
    await b.sync(timeout=PATIENCE)
    loop = asyncio.get_running_loop()
    tools = [loop.run_in_executor(None, done.wait, 60) for _ in range(40)]
    try:
        await a.sync(timeout=PATIENCE)
        assert len(await a.get_items()) == 100
        taken = await _calls(a, 5, 5)
        assert max(taken) < HELD_UP_SECONDS, max(taken)
        assert len(await a.search("popped")) == 0
        await a.close()
    finally:
        done.set()
        await asyncio.gather(*tools)


ENDS = """
import asyncio, socket, sys, threading, time
from cached_session import CachedSession, SyncOptions

def never(*_, **__):
    print("asked", flush=True)
    threading.Event().wait()

socket.getaddrinfo = never
OPTIONS = SyncOptions(connect_timeout=0.2, backoff_base=0.05, backoff_max=0.1, close_timeout=0.2)

async def main():
    session = CachedSession.from_url(
        "s", url="http://server.example", journal=sys.argv[1], options=OPTIONS, hydrate=False
    )
    await session.add_items([{"role": "user", "content": "kept"}])
    while session.status().last_error is None:
        await asyncio.sleep(0.01)
    if sys.argv[2] == "closed":
        await session.close()
    print("done", flush=True)

asyncio.run(main())
"""


@pytest.mark.parametrize("how", ["closed", "left open"])
async def test_a_process_ends_while_its_resolver_hangs(tmp_path: Path, how: str) -> None:
    """A lookup that never returns delays neither the end of the event loop nor that of the process,
    and acknowledged items are stored."""
    journal = tmp_path / "a.db"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", ENDS, journal, how, stdout=asyncio.subprocess.PIPE
    )
    try:
        out, _ = await asyncio.wait_for(process.communicate(), 30)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0
    assert out.split() == [b"asked", b"done"]
    async with CachedSession("s", journal=journal) as session:
        assert await session.get_items() == [text_message("kept")]


async def test_reset_connections_are_replaced(device: Devices, server: DevServer) -> None:
    """A middlebox that drops idle connections costs at most a retry, and no operation."""
    async with Line(server).running() as line:
        a = device.new("a", options=SHORT, url=line.url())
        for number in range(10):
            await a.add_items([text_message(f"{number}")])
            await a.sync(timeout=PATIENCE)
            line.cut()
        assert items_on_server(server) == [f"{number}" for number in range(10)]


async def test_a_server_without_tls_is_offline_until_its_url_is_corrected(
    device: Devices, server: DevServer
) -> None:
    """An https URL of a plain HTTP server is offline with its reason, and pending items arrive when
    the URL is corrected."""
    url = server.url.replace("http://", "https://")
    a = device.new("a", options=SHORT, url=url)
    await a.add_items([text_message("one")])
    await wait_until(lambda: a.status().state == "offline")
    assert url in str(a.status().last_error)
    assert len(await a.get_items()) == 1
    await a.close()
    again = device.new("a", options=SHORT)
    await again.sync(timeout=PATIENCE)
    assert items_on_server(server) == ["one"]


async def test_requests_that_are_too_large_together_are_split(
    device: Devices, server: DevServer
) -> None:
    """A proxy that refuses requests of more than 30,000 bytes (413, in HTML) gets smaller ones,
    also for an operation of many memories. A single memory that is too large is parked."""
    async with Line(server).running() as line:
        a = await device("a", options=SHORT, url=line.url())
        line.most_bytes = 30_000
        for number in range(40):
            await a.add_items([text_message(f"{number} " + "x" * 2000)])
        await a.add_items(
            [text_message(f"one of many {number} " + "y" * 2000) for number in range(40)]
        )
        await a.sync(timeout=PATIENCE)
        assert (a.status().pending, a.status().parked) == (0, 0)
        assert len(items_on_server(server)) == 80
        line.most_bytes = 5_000
        await a.add_items([text_message("z" * 4000)])
        await a.add_items([text_message("after it")])
        await a.sync(timeout=PATIENCE)
        (parked,) = await a.parked()
        assert "413" in parked.error
        assert items_on_server(server)[-1] == "after it"
        line.most_bytes = None
        assert await a.retry_parked() == 1
        await a.sync(timeout=PATIENCE)
        assert len(await assert_one_history(a, device.new("late"))) == 82
