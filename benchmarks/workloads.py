"""What is measured: each function runs one workload over its arms in turn; numbers come back."""

from __future__ import annotations

import asyncio
import gc
import math
import resource
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from agents.extensions.memory import AsyncSQLiteSession
from dakera import AsyncDakeraClient

from arms import OURS, PEER, DirectDakera, fill, open_arms
from cached_session import CachedSession, SessionCache
from corpus import Item, history
from measure import Stopwatch

__all__ = ["calls", "concurrent", "delays", "exponent", "growth", "memory", "sync"]

Numbers = dict[str, Any]
BEAT = 0.0005
"""Seconds between two beats of the task that tells how long it was held up."""


async def calls(directory: Path, items: list[Item], url: str | None, rounds: int) -> Numbers:
    """Every call of every arm, interleaved; each round begins with another arm."""
    watch = Stopwatch()
    async with AsyncExitStack() as stack:
        arms = await open_arms(stack, directory, items, url)
        for arm in arms.values():  # the first call opens: not what is measured
            await arm.get_items(20)
        names = list(arms)
        gc.collect()
        gc.freeze()
        for number in range(rounds):
            start = number % len(names)
            for name in names[start:] + names[:start]:
                arm, batch = arms[name], items[:100]
                await watch.time("add 1", name, arm.add_items(batch[:1]))
                await watch.time("read 20 after a write", name, arm.get_items(20))
                await watch.time("read 20", name, arm.get_items(20))
                await watch.time("read 200", name, arm.get_items(200))
                await watch.time("pop", name, arm.pop_item())
                await watch.time("turn: read 50, add 3", name, _turn(arm, batch))
                if number % 8 == 0:
                    await watch.time("add 10", name, arm.add_items(batch[:10]))
                    await watch.time("add 100", name, arm.add_items(batch))
                    if len(items) <= 10_000:
                        await watch.time("read all", name, arm.get_items())
        gc.unfreeze()
        held = await delays(arms, len(items) <= 10_000)
    return {"calls": watch.table(), "held_ms": held}


async def _turn(arm: Any, batch: list[Item]) -> None:
    await arm.get_items(50)
    await arm.add_items(batch[:3])


async def delays(arms: dict[str, Any], whole: bool) -> Numbers:
    """The longest time that another task was held up by each call: the median of some runs, so
    that the machine's own pauses do not count."""
    found: Numbers = {}
    works: dict[str, Callable[[Any], Awaitable[Any]]] = {
        "read 20": lambda arm: arm.get_items(20),
        "add 1": lambda arm: arm.add_items([{"role": "user", "content": "x"}]),
    }
    if whole:
        works["read all"] = lambda arm: arm.get_items()
    for what, work in works.items():
        found[what] = {}
        for name, arm in arms.items():
            gaps = sorted([await _gap(work, arm) for _ in range(9)])
            found[what][name] = gaps[len(gaps) // 2] * 1000
    return found


async def _gap(work: Callable[[Any], Awaitable[Any]], arm: Any) -> float:
    worst, running = 0.0, True

    async def beat() -> None:
        nonlocal worst
        last = time.perf_counter()
        while running:
            await asyncio.sleep(BEAT)
            now = time.perf_counter()
            worst, last = max(worst, now - last - BEAT), now

    beating = asyncio.ensure_future(beat())
    await asyncio.sleep(2 * BEAT)
    await work(arm)
    running = False
    await beating
    return worst


async def concurrent(directory: Path, sessions: int) -> Numbers:
    """Seconds until many sessions have each written one item, side by side, on one file."""
    item = history(1)
    found: dict[str, list[float]] = {PEER: [], OURS: []}
    for turn in range(3):
        path = directory / f"many-{turn}.db"
        peers = [AsyncSQLiteSession(f"s{n}", path) for n in range(sessions)]
        async with AsyncExitStack() as stack:
            for peer in peers:
                stack.push_async_callback(peer.close)
                await peer.get_items(1)
            start = time.perf_counter()
            # A connection and a thread each, and SQLite lets one write: at most eight at a time,
            # or they give up waiting for the lock.
            limit = asyncio.Semaphore(8)

            async def write(peer: Any, limit: asyncio.Semaphore = limit) -> None:
                async with limit:
                    await peer.add_items(item)

            await asyncio.gather(*map(write, peers))
            found[PEER].append(time.perf_counter() - start)
        async with SessionCache(directory / f"ours-{turn}.db") as cache:
            ours = [cache.session(f"s{n}") for n in range(sessions)]
            await ours[0].get_items(1)
            start = time.perf_counter()
            await asyncio.gather(*(one.add_items(item) for one in ours))  # type: ignore[arg-type]
            found[OURS].append(time.perf_counter() - start)
    return {"sessions": sessions, "seconds": {name: min(took) for name, took in found.items()}}


async def sync(directory: Path, url: str, count: int, sample: int) -> Numbers:
    """Push a backlog, hydrate another device, read meanwhile; beside one request an item."""
    items = history(count)
    name = f"sync-{count}"
    found: Numbers = {"items": count}
    journal = directory / f"{name}.db"
    async with CachedSession(name, journal=journal) as session:
        await fill(session, items)
    async with CachedSession.from_url(name, url=url, journal=journal, hydrate=False) as session:
        watch = Stopwatch()
        cpu, start = time.process_time(), time.perf_counter()
        pushing = asyncio.ensure_future(session.flush(600))
        while not pushing.done():
            await watch.time("read", "busy", session.get_items(20))
            await asyncio.sleep(0.002)
        await pushing
        found["push_seconds"] = time.perf_counter() - start
        found["push_cpu_per_1000"] = (time.process_time() - cpu) / count * 1000
        for _ in range(300):
            await watch.time("read", "idle", session.get_items(20))
            await asyncio.sleep(0.002)
        found["read_while_pushing"] = watch.table()["read"]
    other = directory / f"{name}-other.db"
    async with CachedSession.from_url(name, url=url, journal=other, hydrate=False) as session:
        cpu, start = time.process_time(), time.perf_counter()
        syncing = asyncio.ensure_future(session.sync(600))
        # As a user would look.
        while len(await session.get_items(200)) < min(200, count):  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        found["first_200_seconds"] = time.perf_counter() - start
        await syncing
        found["hydrate_seconds"] = time.perf_counter() - start
        found["hydrate_cpu_per_1000"] = (time.process_time() - cpu) / count * 1000
        if len(await session.get_items()) != count:
            raise RuntimeError("the other device does not hold the whole history")
    async with AsyncDakeraClient(url) as client:
        start = time.perf_counter()
        await DirectDakera(client).add_items(items[:sample])
        found["one_by_one_seconds"] = (time.perf_counter() - start) / sample * count
    return found


async def growth(directory: Path, lengths: list[int]) -> Numbers:
    """What calls cost as the history grows, and the file beside its payload."""
    costs: dict[str, list[float]] = {}
    sizes: list[float] = []
    for length in lengths:
        items = history(length)
        path = directory / f"growth-{length}.db"
        async with CachedSession("growth", journal=path) as session:
            await fill(session, items)
            watch = Stopwatch()
            for _ in range(60):
                await watch.time("add 1", OURS, session.add_items(items[:1]))  # type: ignore[arg-type]
                await watch.time("read 20 after a write", OURS, session.get_items(20))
                await watch.time("pop", OURS, session.pop_item())
            start = time.perf_counter()
            await session.get_items()
            costs.setdefault("read all", []).append(time.perf_counter() - start)
        for what, arms in watch.table().items():
            costs.setdefault(what, []).append(arms[OURS]["median"])
        payload = sum(len(str(item)) for item in items)
        sizes.append(path.stat().st_size / payload)
    return {
        "lengths": lengths,
        "seconds": costs,
        "exponents": {what: exponent(lengths, took) for what, took in costs.items()},
        "journal_bytes_a_payload_byte": sizes,
    }


def exponent(sizes: list[int], costs: list[float]) -> float:
    """The slope of the costs over the sizes, both as logarithms: 0 is flat, 1 is linear."""
    xs, ys = [math.log(size) for size in sizes], [math.log(cost) for cost in costs]
    x, y = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True)) / sum(
        (a - x) ** 2 for a in xs
    )


async def memory(directory: Path, lengths: list[int]) -> Numbers:
    """Resident memory of a process of its own that reads the tail of each history 100 times."""
    found: list[float] = []
    for length in lengths:
        path = str(directory / f"growth-{length}.db")
        command = [sys.executable, __file__, path]
        process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
        out, _ = await process.communicate()
        found.append(float(out))
    return {"lengths": lengths, "resident_mib": found}


async def _read_tails(path: str) -> None:
    async with CachedSession("growth", journal=path) as session:
        for _ in range(100):
            await session.get_items(20)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


if __name__ == "__main__":
    asyncio.run(_read_tails(sys.argv[1]))
