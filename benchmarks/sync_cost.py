"""The cost of sync: push, hydration, reconnect, reads during a push, bytes, and event latency."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections import Counter
from collections.abc import Awaitable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
from dakera import AsyncDakeraClient

from backends import DirectDakera
from cached_session import CachedSession
from conversations import history, payload_bytes, turns
from make_journals import make
from measure import Numbers, Stopwatch, blocked_ms, print_progress, summarize
from scale import Scale
from servers import CountingProxy, Server, devserver

__all__ = ["measure_busy", "measure_events", "measure_sync"]

SYNC_TIMEOUT = 900.0
"""Seconds after which a sync counts as failed."""
TAIL = 200
"""Items of the first read on a new device."""
MISSED_ITEMS = 60
"""Items that were added while a device was closed."""
READ_INTERVAL = 0.002
"""Seconds between two reads during a push."""
SETTLE_SECONDS = 1.0
"""Seconds after a sync until a device is idle."""
LISTENERS = 20
"""Devices that listen to the same event stream."""
POLL_SECONDS = 0.0005
"""Seconds between two reads that wait for the write of another device."""


async def measure_sync(directory: Path, scale: Scale) -> Numbers:
    """Measure each cell on an empty server; the history consists of turns of an agent."""
    found: Numbers = {"cells": []}
    backlogs: dict[int, Path] = {}
    async with devserver() as server:
        for count, latency in scale.cells:
            print_progress(f"  {count} items, {latency:g} ms")
            if count not in backlogs:
                backlogs[count] = directory / f"backlog-{count}.db"
                await make(backlogs[count], "sync", (), turns(history(count)))
            await server.reset(latency)
            cell = await _measure_cell(directory, server, backlogs[count], count, scale.sample)
            found["cells"].append({"items": count, "latency_ms": latency, **cell})
        found["wire"] = await _measure_wire(directory, server, scale.disk)
    return found


async def _measure_cell(
    directory: Path, server: Server, backlog: Path, count: int, sample: int
) -> Numbers:
    """Measure push, first read, hydration, reconnect and single requests with `count` items."""
    sender, receiver = directory / "here.db", directory / "there.db"
    _remove(sender, receiver)
    shutil.copy(backlog, sender)
    found: Numbers = {}
    async with CachedSession.from_url(
        "sync", url=server.url, journal=sender, hydrate=False
    ) as session:
        found.update(await _measure(server, "push", session.flush(SYNC_TIMEOUT)))
    found.update(await _measure_first_read(directory / "first.db", server, count))
    # The time includes opening, because opening begins the pull. A `sync` that begins only one
    # request later has to list the newest memories again.
    found.update(await _measure(server, "hydrate", _hydrate(server, receiver, count)))
    # At the first reconnect, the newest memories that the device knows are those of the push, which
    # were stored within a few seconds; the pull lists them again. The second is the normal case.
    for what in ("news", "reconnect"):
        await server.advance(3600.0)
        found.update(await _measure_reconnect(server, what, sender, receiver))
    async with AsyncDakeraClient(server.url) as client:
        start = time.perf_counter()
        await DirectDakera(client, "one-by-one").add_items(history(sample))
        found["one_by_one_seconds"] = (time.perf_counter() - start) / sample * count
    return found


async def _measure(server: Server, what: str, work: Awaitable[Any]) -> Numbers:
    """Run the work; return its seconds, processor seconds, blocking and requests."""
    before = Counter(await server.requests())
    cpu, server_cpu = time.process_time(), server.cpu_seconds()
    start = time.perf_counter()
    blocked = await blocked_ms(work)
    found: Numbers = {
        f"{what}_seconds": time.perf_counter() - start,
        f"{what}_cpu_seconds": time.process_time() - cpu,
    }
    if server_cpu is not None:
        found[f"{what}_server_cpu_seconds"] = (server.cpu_seconds() or server_cpu) - server_cpu
    found[f"{what}_held_ms"] = blocked
    found[f"{what}_requests"] = (Counter(await server.requests()) - before).total()
    return found


async def _measure_first_read(journal: Path, server: Server, count: int) -> Numbers:
    """Measure the time and round trips until a new device can read the tail."""
    proxy = CountingProxy(server.url)
    async with (
        proxy.open() as url,
        CachedSession.from_url("sync", url=url, journal=journal) as session,
    ):
        start = time.perf_counter()
        readable = len(await session.get_items(TAIL))
        found: Numbers = {
            "tail_seconds": time.perf_counter() - start,
            "tail_round_trips": proxy.round_trips,
            "tail_requests": proxy.requests,
        }
    # A tail leaves out the outputs of calls that it cuts off.
    if readable < min(TAIL, count) * 0.9:
        raise RuntimeError(f"only {readable} items were readable on the new device")
    _remove(journal)
    return found


async def _hydrate(server: Server, journal: Path, count: int) -> None:
    """Open a new device and fetch the whole history."""
    async with CachedSession.from_url(
        "sync", url=server.url, journal=journal, hydrate=False
    ) as session:
        await session.sync(SYNC_TIMEOUT)
        if (items := session.status().items) != count:
            raise RuntimeError(f"the new device has {items} of {count} items")


async def _measure_reconnect(server: Server, what: str, sender: Path, receiver: Path) -> Numbers:
    """Add turns on one device, and measure the sync of another that was closed meanwhile."""
    async with CachedSession.from_url("sync", url=server.url, journal=sender) as session:
        for turn in turns(history(MISSED_ITEMS)):
            await session.add_items(turn)  # type: ignore[arg-type]
        await session.flush(SYNC_TIMEOUT)
        expected = session.status().items
    async with CachedSession.from_url(
        "sync", url=server.url, journal=receiver, hydrate=False
    ) as session:
        found = await _measure(server, what, session.sync(SYNC_TIMEOUT))
        if (items := session.status().items) != expected:
            raise RuntimeError(f"the reconnected device has {items} of {expected} items")
    return found


async def _measure_wire(directory: Path, server: Server, count: int) -> Numbers:
    """Measure bytes on the wire, including headers, a byte of payload, for push and hydration."""
    items = history(count)
    payload = payload_bytes(items)
    path, other = directory / "wire.db", directory / "wire-other.db"
    _remove(path, other)
    await make(path, "sync", (), turns(items))
    await server.reset(0.0)
    found: Numbers = {"items": count, "payload_bytes": payload}
    for what, journal in (("push", path), ("hydrate", other)):
        proxy = CountingProxy(server.url)
        async with (
            proxy.open() as url,
            CachedSession.from_url("sync", url=url, journal=journal, hydrate=False) as session,
        ):
            await session.sync(SYNC_TIMEOUT)
        found[what] = {
            "sent": proxy.sent / payload,
            "received": proxy.received / payload,
            "requests": proxy.requests,
        }
    return found


async def measure_busy(directory: Path, scale: Scale) -> Numbers:
    """Measure reads of the tail during a push, and the same number of reads when idle.

    A first round is a warm-up and is not counted.
    """
    count, rounds = scale.busy
    backlog = directory / "busy.db"
    await make(backlog, "sync", (), turns(history(count)))
    watch = Stopwatch()
    blocked: list[float] = []
    async with devserver() as server:
        for number in range(rounds + 1):
            counted = watch if number else Stopwatch()
            await server.reset(20.0)
            path = directory / f"busy-{number}.db"
            shutil.copy(backlog, path)
            async with CachedSession.from_url(
                "sync", url=server.url, journal=path, hydrate=False
            ) as session:
                pushing = asyncio.ensure_future(session.flush(SYNC_TIMEOUT))
                reads = 0
                while not pushing.done():
                    await counted.time("read 20", "busy", session.get_items(20))
                    reads += 1
                    await asyncio.sleep(READ_INTERVAL)
                await pushing
                # The listing of its own memories and the event stream must not count as idle time.
                await session.sync(SYNC_TIMEOUT)
                await asyncio.sleep(SETTLE_SECONDS)
                for _ in range(reads):
                    await counted.time("read 20", "idle", session.get_items(20))
                    await asyncio.sleep(READ_INTERVAL)
            if number:
                async with CachedSession.from_url(
                    "sync", url=server.url, journal=directory / f"pull-{number}.db", hydrate=False
                ) as session:
                    blocked.append(await blocked_ms(session.sync(SYNC_TIMEOUT)))
    return {"items": count, "rounds": rounds, **watch.table(), "pull_held_ms": min(blocked)}


async def measure_events(directory: Path, scale: Scale) -> Numbers:
    """Measure the seconds from a write on one device until another returns it, over loopback."""
    took: list[float] = []
    async with (
        devserver() as server,
        CachedSession.from_url("talk", url=server.url, journal=directory / "a.db") as here,
        CachedSession.from_url("talk", url=server.url, journal=directory / "b.db") as there,
    ):
        await here.add_items([{"role": "user", "content": "hello"}])
        await here.flush(SYNC_TIMEOUT)
        while not await there.get_items(1):
            await there.sync(SYNC_TIMEOUT)
        # The event stream may still be opening, so do not count the first writes.
        for number in range(scale.events + 5):
            text = f"message {number}"
            start = time.perf_counter()
            await here.add_items([{"role": "user", "content": text}])
            while (await there.get_items(1))[0].get("content") != text:
                if time.perf_counter() - start > SYNC_TIMEOUT:
                    raise RuntimeError(f"the other device has not received {text!r}")
                await asyncio.sleep(POLL_SECONDS)
            if number >= 5:
                took.append(time.perf_counter() - start)
            await asyncio.sleep(0.05)  # separate writes
        return {**asdict(summarize(took)), "fan_out": await _measure_fan_out(server, scale.fan_out)}


async def _measure_fan_out(server: Server, count: int) -> Numbers:
    """Measure the server's cost to send one event to one device.

    The same items are stored without and with listening devices; the cost is the difference.
    """
    await server.reset(0.0)
    items = history(count)
    received = [0] * LISTENERS
    ready = [asyncio.Event() for _ in received]

    async def listen(number: int) -> None:
        async with (
            httpx.AsyncClient(timeout=SYNC_TIMEOUT) as client,
            client.stream("GET", f"{server.url}/v1/events/stream") as stream,
        ):
            async for chunk in stream.aiter_bytes():
                received[number] += len(chunk)
                ready[number].set()

    async with AsyncDakeraClient(server.url) as client:
        start = server.cpu_seconds()
        await DirectDakera(client, "without-listeners").fill(items)
        alone = server.cpu_seconds()
        listening = [asyncio.ensure_future(listen(number)) for number in range(LISTENERS)]
        await asyncio.gather(*(one.wait() for one in ready))
        connected, between = sum(received), server.cpu_seconds()
        await DirectDakera(client, "with-listeners").fill(items)
        seen = -1
        # Wait until no more bytes arrive.
        while seen != (seen := sum(received)):  # noqa: ASYNC110
            await asyncio.sleep(0.3)
        end = server.cpu_seconds()
    for one in listening:
        one.cancel()
    await asyncio.gather(*listening, return_exceptions=True)
    found: Numbers = {"bytes_an_event": (seen - connected) / count / LISTENERS}
    if None not in (start, alone, between, end):
        more = (end - between) - (alone - start)  # type: ignore[operator]
        found["server_cpu_ms_an_event"] = max(0.0, more) * 1000 / count / LISTENERS
    return found


def _remove(*paths: Path) -> None:
    """Delete the journals of an earlier cell, with their log files."""
    for path in paths:
        for one in path.parent.glob(f"{path.name}*"):
            one.unlink()
