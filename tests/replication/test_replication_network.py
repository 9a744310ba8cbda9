from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from devices import QUICK, Devices, items_on, one_history, said, until
from fault_lines import FAULTS, NAME, Fault, Line, Names

from cached_session import CachedSession
from cached_session.devserver import DevServer

SHORT = replace(QUICK, request_timeout=0.8, connect_timeout=0.8, audit_interval=0.3)
HELD_UP_SECONDS = 0.75
"""A call that waits for the network at all waits for a time-out, which is longer than this."""


async def _calls(session: CachedSession, first: int, count: int) -> list[float]:
    """Every kind of call, again and again: how long each took, in order."""
    taken = []
    for number in range(first, first + count):
        for call in (
            session.add_items([said(f"{number}"), said("popped")]),
            session.get_items(limit=5),
            session.pop_item(),
            session.get_items(),
            session.entries(limit=5),
        ):
            began = time.perf_counter()
            await call
            taken.append(time.perf_counter() - began)
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
        await a.sync(timeout=20)
        line.backup = server.snapshot()
        await _calls(a, 10, 5)
        await a.sync(timeout=20)
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
        await until(lambda: a.status().pending == 0, 20)
        await until(lambda: items_on(server) == wanted, 20)
        await until(lambda: a.status().last_error is None)
        assert await one_history(a, device.new("late")) == wanted


async def test_a_resolver_that_hangs_uses_up_no_thread_of_ours(
    device: Devices, server: DevServer
) -> None:
    """Names are looked up in threads of which a loop has a few, and which nobody can end: when each
    waits for a name, calls that read in a thread are as quick as ever, and close works."""
    with Names().patched() as names:
        async with Line(server).running() as line:
            a = device.new("a", options=SHORT, url=line.url(NAME))
            await _calls(a, 0, 5)
            await a.sync(timeout=20)
            names.mode = "hangs"
            line.cut()
            await a.add_items([said("apart")])
            loop = asyncio.get_running_loop()
            for _ in range(40):
                loop.run_in_executor(None, names.waiting.wait, 60)
            taken = await _calls(a, 5, 5)
            assert max(taken) < HELD_UP_SECONDS, max(taken)
            assert len(await a.search("apart")) == 1
            await a.close()
            names.waiting.set()


async def test_connections_cut_again_and_again_are_made_anew(
    device: Devices, server: DevServer
) -> None:
    """A middlebox that forgets idle connections costs at most a retry, and no operation."""
    async with Line(server).running() as line:
        a = device.new("a", options=SHORT, url=line.url())
        for number in range(10):
            await a.add_items([said(f"{number}")])
            await a.sync(timeout=20)
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
    await again.sync(timeout=20)
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
        await a.sync(timeout=30)
        assert (a.status().pending, a.status().parked) == (0, 0)
        assert len(items_on(server)) == 80
        line.most_bytes = 5_000
        await a.add_items([said("z" * 4000)])
        await a.add_items([said("after it")])
        await a.sync(timeout=30)
        (parked,) = await a.parked()
        assert "413" in parked.error
        assert items_on(server)[-1] == "after it"
        line.most_bytes = None
        assert await a.retry_parked() == 1
        await a.sync(timeout=30)
        assert len(await one_history(a, device.new("late"))) == 82
