"""A backlog pushed, a history brought to another device, a device that comes back; reads meanwhile;
what all of it puts on the wire; how soon one device sees another's words."""

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
from measure import Numbers, Stopwatch, held_ms, say, summed_up
from scale import Scale
from servers import CountingLine, Server, devserver

__all__ = ["busy", "events", "sync"]

PATIENCE = 900.0
"""Seconds that a sync may take."""
TAIL = 200
"""Items that should be readable soonest on a new device."""
NEWS = 60
"""Items that a device that comes back has missed."""
PACE = 0.002
"""Seconds between two reads while the replicator works."""
REST = 1.0
"""Seconds after which a device that has nothing to do does nothing."""
LISTENERS = 20
"""Devices that are told of the same items."""
LOOK = 0.0005
"""Seconds between two looks for another device's words."""


async def sync(directory: Path, scale: Scale) -> Numbers:
    """Each cell on a server without other data; the history is made of an agent's turns."""
    found: Numbers = {"cells": []}
    backlogs: dict[int, Path] = {}
    async with devserver() as server:
        for count, latency in scale.cells:
            say(f"  {count} items, {latency:g} ms")
            if count not in backlogs:
                backlogs[count] = directory / f"backlog-{count}.db"
                await make(backlogs[count], "sync", (), turns(history(count)))
            await server.begin(latency)
            cell = await _cell(directory, server, backlogs[count], count, scale.sample)
            found["cells"].append({"items": count, "latency_ms": latency, **cell})
        found["wire"] = await _wire(directory, server, scale.disk)
    return found


async def _cell(directory: Path, server: Server, backlog: Path, count: int, sample: int) -> Numbers:
    found: Numbers = {}
    here, there = directory / "here.db", directory / "there.db"
    _remove(here, there)
    shutil.copy(backlog, here)

    async def measured(what: str, work: Awaitable[Any]) -> None:
        before = Counter(await server.requests())
        cpu, far = time.process_time(), server.cpu_seconds()
        start = time.perf_counter()
        held = await held_ms(work)
        found[f"{what}_seconds"] = time.perf_counter() - start
        found[f"{what}_cpu_seconds"] = time.process_time() - cpu
        if far is not None:
            found[f"{what}_server_cpu_seconds"] = (server.cpu_seconds() or far) - far
        found[f"{what}_held_ms"] = held
        found[f"{what}_requests"] = (Counter(await server.requests()) - before).total()

    async with CachedSession.from_url(
        "sync", url=server.url, journal=here, hydrate=False
    ) as session:
        await measured("push", session.flush(PATIENCE))

    # Another device: how many round trips until its tail can be read, ...
    line = CountingLine(server.url)
    async with (
        line.open() as url,
        CachedSession.from_url("sync", url=url, journal=directory / "first.db") as session,
    ):
        start = time.perf_counter()
        readable = len(await session.get_items(TAIL))
        found["tail_seconds"] = time.perf_counter() - start
        found["tail_round_trips"], found["tail_requests"] = line.round_trips, line.requests
    if readable < min(TAIL, count):
        raise RuntimeError(f"{readable} items were readable on the new device")
    _remove(directory / "first.db")

    # ... and how long until all of it is there. Opening is part of it: it begins the pull, and a
    # `sync` that is called later, were it by one request, has to list all that is so new once more.
    async def hydrated() -> None:
        async with CachedSession.from_url(
            "sync", url=server.url, journal=there, hydrate=False
        ) as session:
            await session.sync(PATIENCE)
            if (found_there := session.status().items) != count:
                raise RuntimeError(f"the other device holds {found_there} of {count} items")

    await measured("hydrate", hydrated())

    # It goes away; the first one talks on; it comes back. The first news lies on top of all that
    # was stored in one go, which is listed once more for them; the second time is as any other.
    for what in ("news", "reconnect"):
        await server.advance(3600.0)
        async with CachedSession.from_url("sync", url=server.url, journal=here) as session:
            for turn in turns(history(NEWS)):
                await session.add_items(turn)  # type: ignore[arg-type]
            await session.flush(PATIENCE)
            whole = session.status().items
        async with CachedSession.from_url(
            "sync", url=server.url, journal=there, hydrate=False
        ) as session:
            await measured(what, session.sync(PATIENCE))
            if session.status().items != whole:
                raise RuntimeError("the device that came back has not seen what it missed")

    async with AsyncDakeraClient(server.url) as client:
        start = time.perf_counter()
        await DirectDakera(client, "one-by-one").add_items(history(sample))
        found["one_by_one_seconds"] = (time.perf_counter() - start) / sample * count
    return found


async def _wire(directory: Path, server: Server, count: int) -> Numbers:
    """Bytes on the wire, headers included, a byte of payload: there, and to another device."""
    items = history(count)
    payload = payload_bytes(items)
    path, other = directory / "wire.db", directory / "wire-other.db"
    _remove(path, other)
    await make(path, "sync", (), turns(items))
    await server.begin(0.0)
    found: Numbers = {"items": count, "payload_bytes": payload}
    for what, journal in (("push", path), ("hydrate", other)):
        line = CountingLine(server.url)
        async with (
            line.open() as url,
            CachedSession.from_url("sync", url=url, journal=journal, hydrate=False) as session,
        ):
            await session.sync(PATIENCE)
        found[what] = {
            "sent": line.sent / payload,
            "received": line.received / payload,
            "requests": line.requests,
        }
    return found


async def busy(directory: Path, scale: Scale) -> Numbers:
    """Reads of a tail while the replicator pushes a backlog, beside the same reads when nothing is
    left to push, in turn; a first round warms everything up and does not count."""
    count, rounds = scale.busy
    backlog = directory / "busy.db"
    await make(backlog, "sync", (), turns(history(count)))
    watch = Stopwatch()
    held: list[float] = []
    async with devserver() as server:
        for number in range(rounds + 1):
            counted = watch if number else Stopwatch()
            await server.begin(20.0)
            path = directory / f"busy-{number}.db"
            shutil.copy(backlog, path)
            async with CachedSession.from_url(
                "sync", url=server.url, journal=path, hydrate=False
            ) as session:
                pushing = asyncio.ensure_future(session.flush(PATIENCE))
                reads = 0
                while not pushing.done():
                    await counted.time("read 20", "busy", session.get_items(20))
                    reads += 1
                    await asyncio.sleep(PACE)
                await pushing
                # What is under way besides (its own listing, the words) must not count as idle.
                await session.sync(PATIENCE)
                await asyncio.sleep(REST)
                for _ in range(reads):
                    await counted.time("read 20", "idle", session.get_items(20))
                    await asyncio.sleep(PACE)
            if number:
                async with CachedSession.from_url(
                    "sync", url=server.url, journal=directory / f"pull-{number}.db", hydrate=False
                ) as session:
                    held.append(await held_ms(session.sync(PATIENCE)))
    return {"items": count, "rounds": rounds, **watch.table(), "pull_held_ms": min(held)}


async def events(directory: Path, scale: Scale) -> Numbers:
    """Seconds from a write on one device until another, which listens, shows it; by loopback."""
    took: list[float] = []
    async with (
        devserver() as server,
        CachedSession.from_url("talk", url=server.url, journal=directory / "a.db") as here,
        CachedSession.from_url("talk", url=server.url, journal=directory / "b.db") as there,
    ):
        await here.add_items([{"role": "user", "content": "hello"}])
        await here.flush(PATIENCE)
        while not await there.get_items(1):
            await there.sync(PATIENCE)
        # Its stream may still be opening: the first words do not count.
        for number in range(scale.events + 5):
            text = f"word {number}"
            start = time.perf_counter()
            await here.add_items([{"role": "user", "content": text}])
            while (await there.get_items(1))[0].get("content") != text:
                if time.perf_counter() - start > PATIENCE:
                    raise RuntimeError("the other device never saw it")
                await asyncio.sleep(LOOK)
            if number >= 5:
                took.append(time.perf_counter() - start)
            await asyncio.sleep(0.05)  # a word of its own, not the rest of the last one
        return {**asdict(summed_up(took)), "fan_out": await _fan_out(server, scale.told)}


async def _fan_out(server: Server, told: int) -> Numbers:
    """What it costs the server to tell one device of one item: the same items are stored with
    nobody listening, and with some who do."""
    await server.begin(0.0)
    items = history(told)
    received = [0] * LISTENERS
    ready = [asyncio.Event() for _ in received]

    async def listen(number: int) -> None:
        async with (
            httpx.AsyncClient(timeout=PATIENCE) as client,
            client.stream("GET", f"{server.url}/v1/events/stream") as stream,
        ):
            async for chunk in stream.aiter_bytes():
                received[number] += len(chunk)
                ready[number].set()

    async with AsyncDakeraClient(server.url) as client:
        start = server.cpu_seconds()
        await DirectDakera(client, "unheard").fill(items)
        alone = server.cpu_seconds()
        listening = [asyncio.ensure_future(listen(number)) for number in range(LISTENERS)]
        await asyncio.gather(*(one.wait() for one in ready))
        greeting, between = sum(received), server.cpu_seconds()
        await DirectDakera(client, "heard").fill(items)
        seen = -1
        # As long as something comes.
        while seen != (seen := sum(received)):  # noqa: ASYNC110
            await asyncio.sleep(0.3)
        end = server.cpu_seconds()
    for one in listening:
        one.cancel()
    await asyncio.gather(*listening, return_exceptions=True)
    found: Numbers = {"bytes_an_event": (seen - greeting) / told / LISTENERS}
    if None not in (start, alone, between, end):
        more = (end - between) - (alone - start)  # type: ignore[operator]
        found["server_cpu_ms_an_event"] = max(0.0, more) * 1000 / told / LISTENERS
    return found


def _remove(*paths: Path) -> None:
    """Journals of an earlier cell, with all that lies beside them."""
    for path in paths:
        for one in path.parent.glob(f"{path.name}*"):
            one.unlink()
