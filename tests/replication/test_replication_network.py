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
    in_vain,
    items_on,
    one_history,
    said,
    until,
)
from tests.replication.fault_lines import FAULTS, NAME, Fault, Line, Names

SHORT = replace(QUICK, request_timeout=2.0, connect_timeout=2.0, audit_interval=0.3)
HELD_UP_SECONDS = 0.75
"""A call that waits for the network at all waits for a time-out, which is much longer than this."""


class Awake:
    """Counts the time in which this process could run: a machine that stalls stops it, and a call
    that a stall has met is not taken for one that has waited."""

    TICK_SECONDS = 0.01

    def __init__(self) -> None:
        self.seconds = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._count)

    def _count(self) -> None:
        while not self._over.wait(self.TICK_SECONDS):
            self.seconds += self.TICK_SECONDS

    def __enter__(self) -> Awake:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


async def _calls(session: CachedSession, first: int, count: int) -> list[float]:
    """Every kind of call, again and again: how long each took, in order."""
    with Awake() as awake:
        return await _timed(session, range(first, first + count), awake)


async def _timed(session: CachedSession, numbers: Iterable[int], awake: Awake) -> list[float]:
    taken = []
    for number in numbers:
        for call in (
            session.add_items([said(f"{number}"), said("popped")]),
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
    """A line that can have this fault."""
    line = Line(server, directory if fault.tls else None)
    if line.tls is not None:
        monkeypatch.setenv("SSL_CERT_FILE", str(line.tls.trusted))
    with Names().patched() as names:
        async with line.running():
            yield line, names


async def done(outcome: Any) -> None:
    """What a step of the table gave, awaited if it can be."""
    if asyncio.iscoroutine(outcome):
        await outcome


@pytest.mark.promise(number=2)
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
async def test_a_fault_of_the_network_holds_up_no_call_and_loses_nothing(
    device: Devices,
    server: DevServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: Fault,
) -> None:
    """Whatever is wrong between a device and its server, every call returns without waiting for
    it, the state says why, and once it is mended each item is there once, on the server and on
    another device, and what was popped is not."""
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
            await until(lambda: a.status().state == "offline")
            taken += await _calls(a, 20, 5)
            assert a.status().pending >= 20
            await until(lambda: re.search(fault.says, str(a.status().last_error)))
            assert line.url(fault.host) in str(a.status().last_error)
        else:
            taken += await _calls(a, 20, 5)
        assert max(taken) < HELD_UP_SECONDS, max(taken)
        await done(fault.end(line, names))
        wanted = [f"{number}" for number in range(25)]
        await until(lambda: a.status().pending == 0)
        await until(lambda: items_on(server) == wanted)
        await until(lambda: a.status().last_error is None)
        assert await one_history(a, device.new("late")) == wanted


async def test_a_resolver_that_hangs_takes_no_thread_of_the_programs(
    device: Devices, server: DevServer
) -> None:
    """However often a name is looked up in vain, and whoever has the journal open: one thread waits
    for it, none of the event loop's pool does, and close waits for nobody."""
    with Names().patched() as names:
        async with Line(server).running() as line:
            options = replace(SHORT, connect_timeout=0.4, request_timeout=PATIENCE)
            a = device.new("a", options=options, url=line.url(NAME))
            await _calls(a, 0, 5)
            await a.sync(timeout=PATIENCE)
            names.mode = "hangs"
            line.cut()
            await a.add_items([said("apart")])
            for _ in range(2):
                await in_vain(a.sync, lambda: "looking up localhost" in str(a.status().last_error))
            assert names.hanging == 1
            assert await asyncio.wait_for(asyncio.to_thread(lambda: "free"), 20) == "free"
            await a.close()
            assert names.hanging == 1


@pytest.mark.promise(number=2)
async def test_a_pool_that_is_used_up_holds_up_neither_calls_nor_a_sync(
    device: Devices, server: DevServer
) -> None:
    """The threads that an event loop brings along are the program's: while its tools use all of
    them up, calls are as quick as ever, and a sync with large answers goes on."""
    done = threading.Event()
    a = device.new("a", options=SHORT)
    b = device.new("b", options=SHORT)
    await b.add_items([said(f"{number} " + "x" * 1000) for number in range(100)])
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
    """A lookup that never returns holds up neither the end of the event loop nor that of the
    process, and what was acknowledged is there."""
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
        assert await session.get_items() == [said("kept")]


async def test_connections_cut_again_and_again_are_made_anew(
    device: Devices, server: DevServer
) -> None:
    """A middlebox that forgets idle connections costs at most a retry, and no operation."""
    async with Line(server).running() as line:
        a = device.new("a", options=SHORT, url=line.url())
        for number in range(10):
            await a.add_items([said(f"{number}")])
            await a.sync(timeout=PATIENCE)
            line.cut()
        assert items_on(server) == [f"{number}" for number in range(10)]


async def test_a_server_without_tls_is_offline_until_its_address_is_put_right(
    device: Devices, server: DevServer
) -> None:
    """An https address where plain HTTP is spoken is offline with its reason; what was written
    arrives when the address is put right."""
    url = server.url.replace("http://", "https://")
    a = device.new("a", options=SHORT, url=url)
    await a.add_items([said("one")])
    await until(lambda: a.status().state == "offline")
    assert url in str(a.status().last_error)
    assert len(await a.get_items()) == 1
    await a.close()
    again = device.new("a", options=SHORT)
    await again.sync(timeout=PATIENCE)
    assert items_on(server) == ["one"]


async def test_what_is_too_large_together_goes_in_smaller_requests(
    device: Devices, server: DevServer
) -> None:
    """A proxy that refuses requests of more than 30,000 bytes (413, in HTML) gets smaller ones, an
    operation of many memories included; one memory that is too large by itself is parked."""
    async with Line(server).running() as line:
        a = await device("a", options=SHORT, url=line.url())
        line.most_bytes = 30_000
        for number in range(40):
            await a.add_items([said(f"{number} " + "x" * 2000)])
        await a.add_items([said(f"one of many {number} " + "y" * 2000) for number in range(40)])
        await a.sync(timeout=PATIENCE)
        assert (a.status().pending, a.status().parked) == (0, 0)
        assert len(items_on(server)) == 80
        line.most_bytes = 5_000
        await a.add_items([said("z" * 4000)])
        await a.add_items([said("after it")])
        await a.sync(timeout=PATIENCE)
        (parked,) = await a.parked()
        assert "413" in parked.error
        assert items_on(server)[-1] == "after it"
        line.most_bytes = None
        assert await a.retry_parked() == 1
        await a.sync(timeout=PATIENCE)
        assert len(await one_history(a, device.new("late"))) == 82
