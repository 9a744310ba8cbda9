"""Each call of each arm, interleaved; many sessions at once; how long the loop was held."""

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

from backends import DIRECT, NORMAL, OURS, PEER, SESSION_ID, open_arms
from cached_session import CachedSession, SessionCache, SyncOptions
from conversations import Item, history
from make_journals import make
from measure import Numbers, Stopwatch, held_ms, say
from scale import Scale
from servers import devserver, redis

__all__ = ["calls", "concurrent"]

LATENCY_MS = 20.0
"""Added by the server of the arms that are online."""
RARE = 8
"""Rounds between two of what takes long: large batches, whole histories, one request per item."""
WHOLE = 1
"""Reads of the whole of a history too long for more."""
HOLDS = 9
"""Runs of each call of which the median hold counts: the machine's own pauses do not."""

FIRST = "read all for the first time"
"""A session that was opened just now keeps nothing; to most arms each time is the first."""

Work = Callable[[Any, list[Item]], Awaitable[Any]]


async def _turn(arm: Any, batch: list[Item]) -> None:
    await arm.get_items(50)
    await arm.add_items(batch[:3])


# A read of a tail comes right after a write once, and once more: cold, and warm.
OFTEN: dict[str, Work] = {
    "add 1": lambda arm, batch: arm.add_items(batch[:1]),
    "read 20 after a write": lambda arm, _: arm.get_items(20),
    "read 20": lambda arm, _: arm.get_items(20),
    "read 200": lambda arm, _: arm.get_items(200),
    "pop": lambda arm, _: arm.pop_item(),
    "turn: read 50, add 3": _turn,
}
SELDOM: dict[str, Work] = {
    "add 10": lambda arm, batch: arm.add_items(batch[:10]),
    "add 100": lambda arm, batch: arm.add_items(batch),
    "read all after a write": lambda arm, _: arm.get_items(),
    "read all": lambda arm, _: arm.get_items(),
}


async def calls(directory: Path, scale: Scale) -> Numbers:
    """Every call of every arm over histories of some lengths."""
    found: Numbers = {"latency_ms": LATENCY_MS, "histories": {}}
    async with devserver() as server, redis(directory / "redis") as redis_url:
        if redis_url is None:
            say("Redis is left out: redis-server is not installed")
        for length, rounds in scale.calls:
            say(f"  a history of {length}")
            await server.begin(LATENCY_MS)
            place = directory / str(length)
            found["histories"][str(length)] = await _one(
                place, history(length), server.url, redis_url, rounds
            )
    return found


async def _one(
    directory: Path, items: list[Item], url: str, redis_url: str | None, rounds: int
) -> Numbers:
    """Each round has the arms in another order."""
    watch, batch = Stopwatch(), items[:100]
    # A million items as Python objects weigh more than all that is measured.
    is_long = len(items) > 100_000
    async with AsyncExitStack() as stack:
        arms = await open_arms(stack, directory, items, url, redis_url)
        if not is_long:
            await make(directory / "first.db", SESSION_ID, items)
        del items
        for arm in arms.values():  # the first call opens: not what is measured
            await arm.get_items(20)
        gc.collect()
        gc.freeze()  # what the arms have loaded: one collection of it outweighs a read of all
        names = list(arms)
        for number in range(rounds):
            # Shuffled, not turned: nobody always comes after the same one, whose disk still works.
            random.Random(number).shuffle(names)
            seldom = number % RARE == 0
            for name in names:
                if name == DIRECT and not seldom:
                    continue
                works = {**OFTEN, **(SELDOM if seldom else {})}
                if is_long:
                    works.pop("read all after a write", None)
                    if number >= RARE * WHOLE:
                        works.pop("read all", None)
                if name == DIRECT:
                    works.pop("add 100", None)  # as ten of its `add 10`
                for what, work in works.items():
                    await watch.time(what, name, work(arms[name], batch))
                if seldom and not is_long and not name.startswith("ours"):
                    await watch.time(FIRST, name, arms[name].get_items())
            if seldom and not is_long:
                async with CachedSession(SESSION_ID, journal=directory / "first.db") as session:
                    await session.get_items(20)
                    await watch.time(FIRST, OURS, session.get_items())
        held = await _holds(arms, batch, whole=not is_long)
    return {"calls": watch.table(), "held_ms": held}


async def _holds(arms: dict[str, Any], batch: list[Item], *, whole: bool) -> Numbers:
    """The longest that another task was held up by each call: the median of some runs, each with
    the arms in another order: a collection of garbage, which comes every so many reads of all,
    would always meet the same arm."""
    works = {**OFTEN, **SELDOM}
    del works["read 20 after a write"]  # the same call, one line above
    del works["read all after a write"]
    if not whole:
        del works["read all"]
    found: Numbers = {}
    for what, work in works.items():
        gaps: dict[str, list[float]] = {
            name: [] for name in arms if (name, what) != (DIRECT, "add 100")
        }
        for number in range(HOLDS):
            names = list(gaps)
            random.Random(number).shuffle(names)
            for name in names:
                seen = gaps[name]
                if name != DIRECT or number == 0:
                    seen.append(await held_ms(work(arms[name], batch)))
        found[what] = {name: statistics.median(seen) for name, seen in gaps.items()}
    return found


async def concurrent(directory: Path, scale: Scale) -> Numbers:
    """Seconds until many sessions have each written one item, side by side, on one file."""
    took: dict[str, list[float]] = {PEER: [], OURS: [], NORMAL: []}
    held: dict[str, list[float]] = {PEER: [], OURS: [], NORMAL: []}
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
                held[name].append(await held_ms(write()))
                seconds.append(time.perf_counter() - start)
    return {
        "sessions": scale.concurrent,
        "seconds": {name: min(seconds) for name, seconds in took.items()},
        "held_ms": {name: statistics.median(gaps) for name, gaps in held.items()},
    }


async def _peers(stack: AsyncExitStack, path: Path, sessions: int) -> Callable[[], Awaitable[Any]]:
    peers = [AsyncSQLiteSession(f"s{n}", path) for n in range(sessions)]
    for peer in peers:
        stack.push_async_callback(peer.close)
        await peer.get_items(1)
    # A connection and a thread each, and SQLite lets one write: at most eight at a time, or they
    # give up waiting for the lock.
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
