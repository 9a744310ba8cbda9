"""The cost of single calls on each backend, and of many concurrent sessions.

Besides the time, it measures how long each call blocks the event loop.
"""

from __future__ import annotations

import asyncio
import gc
import random
import statistics
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from agents.extensions.memory import AsyncSQLiteSession

from backends import DIRECT, NORMAL, OURS, PEER, SESSION_ID, open_backends
from cached_session import CachedSession, SessionCache, SyncOptions
from conversations import Item, history
from make_journals import make
from measure import Numbers, Stopwatch, blocked_ms, print_progress
from scale import Scale
from servers import devserver, redis

__all__ = ["measure_calls", "measure_concurrent"]

LATENCY_MS = 20.0
"""Latency that the server of the online backends adds."""
SELDOM_EVERY = 8
"""Slow calls (large batches, whole histories, one request per item) run once in 8 rounds."""
LONG_READS = 1
"""Reads of a whole history over 100,000 items; more would take too long."""
BLOCKED_RUNS = 9
"""Runs of each call to measure blocking; the median excludes pauses of the machine."""

FIRST = "read all for the first time"
"""A read by a newly opened session, whose caches are empty; most backends have no cache."""

CallFunction = Callable[[Any, list[Item]], Awaitable[Any]]


async def _turn(backend: Any, batch: list[Item]) -> None:
    await backend.get_items(50)
    await backend.add_items(batch[:3])


# The first read of the tail comes after a write (cold), the second after a read (warm).
OFTEN: dict[str, CallFunction] = {
    "add 1": lambda backend, batch: backend.add_items(batch[:1]),
    "read 20 after a write": lambda backend, _: backend.get_items(20),
    "read 20": lambda backend, _: backend.get_items(20),
    "read 200": lambda backend, _: backend.get_items(200),
    "pop": lambda backend, _: backend.pop_item(),
    "turn: read 50, add 3": _turn,
}
SELDOM: dict[str, CallFunction] = {
    "add 10": lambda backend, batch: backend.add_items(batch[:10]),
    "add 100": lambda backend, batch: backend.add_items(batch),
    "read all after a write": lambda backend, _: backend.get_items(),
    "read all": lambda backend, _: backend.get_items(),
}


async def measure_calls(directory: Path, scale: Scale) -> Numbers:
    """Measure every call of every backend on histories of several lengths."""
    found: Numbers = {"latency_ms": LATENCY_MS, "histories": {}}
    async with devserver() as server, redis(directory / "redis") as redis_url:
        if redis_url is None:
            print_progress("Skip Redis: redis-server is not installed")
        for length, rounds in scale.calls:
            print_progress(f"  a history of {length}")
            await server.reset(LATENCY_MS)
            subdirectory = directory / str(length)
            found["histories"][str(length)] = await _measure_history(
                subdirectory, history(length), server.url, redis_url, rounds
            )
    return found


async def _measure_history(
    directory: Path, items: list[Item], url: str, redis_url: str | None, rounds: int
) -> Numbers:
    """Measure all backends on one history; each round has a new order of backends."""
    watch, batch = Stopwatch(), items[:100]
    # A million items as Python objects take more memory than everything that is measured.
    is_long = len(items) > 100_000
    async with AsyncExitStack() as stack:
        backends = await open_backends(stack, directory, items, url, redis_url)
        if not is_long:
            await make(directory / "first.db", SESSION_ID, items)
        del items
        for backend in backends.values():  # the first call opens the backend and is not measured
            await backend.get_items(20)
        gc.collect()
        gc.freeze()  # a collection of what the backends have loaded takes longer than a read of all
        names = list(backends)
        for number in range(rounds):
            # A random order, so that no backend always runs while the disk writes of another end.
            random.Random(number).shuffle(names)
            seldom = number % SELDOM_EVERY == 0
            for name in names:
                if name == DIRECT and not seldom:
                    continue
                works = {**OFTEN, **(SELDOM if seldom else {})}
                if is_long:
                    works.pop("read all after a write", None)
                    if number >= SELDOM_EVERY * LONG_READS:
                        works.pop("read all", None)
                if name == DIRECT:
                    works.pop("add 100", None)  # costs as much as ten `add 10`
                for what, work in works.items():
                    await watch.time(what, name, work(backends[name], batch))
                if seldom and not is_long and not name.startswith("ours"):
                    await watch.time(FIRST, name, backends[name].get_items())
            if seldom and not is_long:
                async with CachedSession(SESSION_ID, journal=directory / "first.db") as session:
                    await session.get_items(20)
                    await watch.time(FIRST, OURS, session.get_items())
        blocked = await _blocked_times(backends, batch, whole=not is_long)
    return {"calls": watch.table(), "held_ms": blocked}


async def _blocked_times(backends: dict[str, Any], batch: list[Item], *, whole: bool) -> Numbers:
    """Return the longest time that each call blocks another task: the median of several runs.

    Each run has a new order of backends. Otherwise a garbage collection, which occurs regularly,
    would always hit the same backend.
    """
    works = {**OFTEN, **SELDOM}
    del works["read 20 after a write"]  # the same call as "read 20"
    del works["read all after a write"]
    if not whole:
        del works["read all"]
    found: Numbers = {}
    for what, work in works.items():
        gaps: dict[str, list[float]] = {
            name: [] for name in backends if (name, what) != (DIRECT, "add 100")
        }
        for number in range(BLOCKED_RUNS):
            names = list(gaps)
            random.Random(number).shuffle(names)
            for name in names:
                seen = gaps[name]
                if name != DIRECT or number == 0:
                    seen.append(await blocked_ms(work(backends[name], batch)))
        found[what] = {name: statistics.median(seen) for name, seen in gaps.items()}
    return found


async def measure_concurrent(directory: Path, scale: Scale) -> Numbers:
    """Measure the seconds until many concurrent sessions on one file have each written an item."""
    took: dict[str, list[float]] = {PEER: [], OURS: [], NORMAL: []}
    blocked: dict[str, list[float]] = {PEER: [], OURS: [], NORMAL: []}
    for turn in range(scale.concurrent_rounds):
        for name, seconds in took.items():
            path = directory / f"{name}-{turn}.db"
            async with AsyncExitStack() as stack:
                write = (
                    await _peers(stack, path, scale.concurrent)
                    if name == PEER
                    else await _ours(stack, path, scale.concurrent, name)
                )
                start = time.perf_counter()
                blocked[name].append(await blocked_ms(write()))
                seconds.append(time.perf_counter() - start)
    return {
        "sessions": scale.concurrent,
        "seconds": {name: min(seconds) for name, seconds in took.items()},
        "held_ms": {name: statistics.median(gaps) for name, gaps in blocked.items()},
    }


async def _peers(stack: AsyncExitStack, path: Path, sessions: int) -> Callable[[], Awaitable[Any]]:
    peers = [AsyncSQLiteSession(f"s{n}", path) for n in range(sessions)]
    for peer in peers:
        stack.push_async_callback(peer.close)
        await peer.get_items(1)
    # Each peer has its own connection and thread, but SQLite allows one writer. Run at most eight
    # at a time, because more would exceed the lock timeout.
    limit = asyncio.Semaphore(8)

    async def write(peer: AsyncSQLiteSession) -> None:
        async with limit:
            await peer.add_items(history(1))  # type: ignore[arg-type]

    return lambda: asyncio.gather(*map(write, peers))


async def _ours(
    stack: AsyncExitStack, path: Path, sessions: int, name: str
) -> Callable[[], Awaitable[Any]]:
    options = SyncOptions(durability="normal") if name == NORMAL else SyncOptions()
    cache = await stack.enter_async_context(SessionCache(path, options=options))
    ours = [cache.session(f"s{n}") for n in range(sessions)]
    await ours[0].get_items(1)
    item = history(1)
    return lambda: asyncio.gather(*(one.add_items(item) for one in ours))  # type: ignore[arg-type]
