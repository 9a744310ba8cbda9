"""The growth of costs with the number of items, sessions, writers, pending operations, tombstones.

It also measures the file size relative to the payload, and the memory of a process that reads. The
calls on all sizes of a row are interleaved, so that noise affects each size equally.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, closing
from pathlib import Path
from typing import Any

import orjson

from cached_session import CachedSession, SessionCache, SyncOptions
from cached_session.history.ids import session_key
from cached_session.history.ops import Dot, Kind, Operation
from cached_session.history.parts import split
from cached_session.history.session_ref import SessionRef
from cached_session.journal.journal import Journal
from cached_session.journal.tables import inbox
from cached_session.runtime import new_writer
from conversations import chunks, history, payload_bytes, turns
from make_journals import MADE, index, make
from measure import Numbers, Stopwatch, exponent, print_progress
from scale import Scale
from servers import devserver, free_port

__all__ = ["measure_disk", "measure_growth", "measure_memory"]

NAME = "growth"
TAIL_READER = Path(__file__).with_name("tail_reader.py")
WARM_UP = 3
LONG = 100_000
"""Histories over this number of items are read whole only once."""
COPIES = 3
"""Copies of the journal at each size, for the calls that can run once on each copy (clear)."""
VISIBLE_ITEMS = 100
"""Items that are not removed, besides the tombstones."""
SESSION_ITEMS = 10
"""Items in each session where sessions are counted."""
NOW_MS = 1_767_225_600_000
SYNC_TIMEOUT = 300.0

Call = Callable[[Any, int], Awaitable[Any]]

CALLS: dict[str, Call] = {
    "add 1": lambda session, _: session.add_items(history(1)),
    "read 20 after a write": lambda session, _: session.get_items(20),
    "pop": lambda session, _: session.pop_item(),
}


async def measure_growth(directory: Path, scale: Scale) -> Numbers:
    """Measure a row for each quantity: its sizes, the median seconds of calls, and exponents."""
    rows = {}
    for what, row in (
        ("items in the history", _lengths),
        ("sessions in the journal", _sessions),
        ("writers of the history", _writers),
        ("pending operations", _pending),
        ("tombstones", _tombstones),
    ):
        print_progress(f"  {what}")
        subdirectory = directory / what
        subdirectory.mkdir(parents=True)
        sizes, seconds = await row(subdirectory, scale)
        exponents = {call: exponent(sizes, took) for call, took in seconds.items()}
        rows[what] = {"sizes": list(sizes), "seconds": seconds, "exponents": exponents}
    return {"rows": rows}


async def _measure_in_turn(
    opened: dict[int, Any], calls: dict[str, Call], rounds: int
) -> dict[str, list[float]]:
    """Return the median seconds of each call, by size; each round has a new order of sizes."""
    watch = Stopwatch()
    sizes, order = list(opened), list(opened)
    for number in range(rounds + WARM_UP):
        counted = watch if number >= WARM_UP else Stopwatch()
        random.Random(number).shuffle(order)
        for size in order:
            for what, call in calls.items():
                await counted.time(what, str(size), call(opened[size], number))
    return {what: [watch.summary(what, str(size)).median for size in sizes] for what in calls}


async def _lengths(directory: Path, scale: Scale) -> tuple[tuple[int, ...], Numbers]:
    async with AsyncExitStack() as stack:
        opened = {}
        for length in scale.lengths:
            path = directory / f"{length}.db"
            await make(path, NAME, history(length))
            opened[length] = await stack.enter_async_context(CachedSession(NAME, journal=path))
        read = {"read 200": lambda session, _: session.get_items(200)}
        seconds = await _measure_in_turn(opened, {**CALLS, **read}, scale.rounds)
        whole = []
        for length, session in opened.items():
            took: list[float] = []
            while len(took) < (1 if length > LONG else COPIES):
                start = time.perf_counter()
                await session.get_items()
                took.append(time.perf_counter() - start)
            whole.append(statistics.median(took))
    return scale.lengths, {**seconds, "read all": whole}


async def _sessions(directory: Path, scale: Scale) -> tuple[tuple[int, ...], Numbers]:
    async with AsyncExitStack() as stack:
        opened = {}
        for count in scale.sessions:
            path = directory / f"{count}.db"
            async with SessionCache(path, options=MADE) as cache:
                for group in chunks(range(count)):  # type: ignore[arg-type]
                    await asyncio.gather(
                        *(
                            cache.session(f"s{n}").add_items(history(SESSION_ITEMS))  # type: ignore[arg-type]
                            for n in group
                        )
                    )
            opened[count] = (count, await stack.enter_async_context(SessionCache(path)))

        def one(call: Call) -> Call:
            # Each round uses another session, far from the last one.
            return lambda at, number: call(at[1].session(f"s{number * 7919 % at[0]}"), number)

        calls = {what: one(call) for what, call in CALLS.items()}
        return scale.sessions, await _measure_in_turn(opened, calls, scale.rounds)


async def _writers(directory: Path, scale: Scale) -> tuple[tuple[int, ...], Numbers]:
    cleared: list[float] = []
    async with AsyncExitStack() as stack:
        opened = {}
        for count in scale.writers:
            path = directory / f"{count}.db"
            await asyncio.to_thread(_write_with_writers, path, count, scale.written)
            await asyncio.to_thread(index, path)
            cleared.append(await _clear(path))
            opened[count] = await stack.enter_async_context(CachedSession(NAME, journal=path))
        seconds = await _measure_in_turn(opened, CALLS, scale.rounds)
    return scale.writers, {**seconds, "clear": cleared}


def _write_with_writers(path: Path, writers: int, operations: int) -> None:
    """Apply a history of `operations` from several writers, as if it came from a server."""
    key = session_key(NAME)
    payloads = [orjson.dumps(item).decode() for item in history(500)]
    journal = Journal(str(path), durability="normal")
    journal.open_blocking()
    try:
        counters: dict[int, int] = {}
        parts = []
        for number in range(operations):
            writer = number * writers // operations
            counters[writer] = counters.get(writer, 0) + 1
            dot = Dot(new_writer(writer.to_bytes(15, "big")), counters[writer])
            payload = payloads[number % len(payloads)]
            op = Operation(dot, Kind.APPEND, (NOW_MS << 16) + writer, NOW_MS + number, (payload,))
            parts += split(op, op.digest(key), key)
        for start in range(0, len(parts), 1000):
            page = parts[start : start + 1000]
            journal.write_blocking(
                lambda conn, page=page: inbox.apply_page(
                    conn, SessionRef.of(NAME), page, [], NOW_MS
                )  # type: ignore[misc]
            )
    finally:
        journal.close_blocking()


async def _clear(path: Path) -> float:
    took = []
    for number in range(COPIES):
        copy = path.with_name(f"{path.stem}-copy-{number}.db")
        shutil.copy(path, copy)
        async with CachedSession(NAME, journal=copy) as session:
            await session.get_items(20)
            start = time.perf_counter()
            await session.clear_session()
            took.append(time.perf_counter() - start)
        copy.unlink()
    return statistics.median(took)


async def _pending(directory: Path, scale: Scale) -> tuple[tuple[int, ...], Numbers]:
    async with AsyncExitStack() as stack:
        opened = {}
        for count in scale.pending:
            path = directory / f"{count}.db"
            await make(path, NAME, (), chunks(history(count), 1))
            opened[count] = await stack.enter_async_context(
                CachedSession.from_url(
                    NAME, url=f"http://127.0.0.1:{free_port()}", journal=path, hydrate=False
                )
            )

        async def status(session: CachedSession, _: int) -> None:
            session.status()

        return scale.pending, await _measure_in_turn(
            opened, {**CALLS, "status": status}, scale.rounds
        )


async def _tombstones(directory: Path, scale: Scale) -> tuple[tuple[int, ...], Numbers]:
    async with AsyncExitStack() as stack:
        opened = {}
        for count in scale.tombstones:
            path = directory / f"{count}.db"
            async with CachedSession(NAME, journal=path, options=MADE) as session:
                # One item an operation, so that a pop removes a whole operation.
                for item in history(VISIBLE_ITEMS + count):
                    await session.add_items([item])  # type: ignore[list-item]
                for _ in range(count):
                    await session.pop_item()
            opened[count] = await stack.enter_async_context(CachedSession(NAME, journal=path))
        every: dict[str, Call] = {**CALLS, "read all": lambda session, _: session.get_items()}
        return scale.tombstones, await _measure_in_turn(opened, every, scale.rounds)


async def measure_disk(directory: Path, scale: Scale) -> Numbers:
    """Measure bytes of the file a byte of payload, and operations, at each stage of a journal."""
    items = history(scale.disk)
    payload = payload_bytes(items)
    path = directory / "disk.db"
    stages: list[Numbers] = []

    def note(stage: str) -> None:
        with closing(sqlite3.connect(path)) as conn:
            (pages,) = conn.execute("PRAGMA page_count").fetchone()
            (size,) = conn.execute("PRAGMA page_size").fetchone()
            (rows,) = conn.execute("SELECT count(*) FROM ops").fetchone()
        stages.append({"stage": stage, "ratio": pages * size / payload, "operations": rows})

    async with devserver() as server:
        await make(path, NAME, (), turns(items))
        note("written, turn by turn")
        async with SessionCache(path, url=server.url) as cache:
            await cache.compact()
            note("compact()")
            await cache.flush(SYNC_TIMEOUT)
            note("all of it acknowledged")
            await cache.compact()
            note("compact()")
            await cache.session(NAME, hydrate=False).clear_session()
            await cache.flush(SYNC_TIMEOUT)
            await cache.sync(SYNC_TIMEOUT)
            note("cleared, and the clear acknowledged")
        often = SyncOptions(prune_interval=0.02)
        async with SessionCache(path, url=server.url, options=often) as cache:
            await cache.sync(SYNC_TIMEOUT)
            before = -1
            # Pruning has no event for its end, so wait until the size no longer changes.
            while before != (before := _size(path)):  # noqa: ASYNC110
                await asyncio.sleep(1.0)
            note("pruned automatically")
            await cache.compact()
            note("compact()")
    return {"items": scale.disk, "payload_bytes": payload, "stages": stages}


def _size(path: Path) -> int:
    with closing(sqlite3.connect(path)) as conn:
        (pages,) = conn.execute("PRAGMA page_count").fetchone()
        (rows,) = conn.execute("SELECT count(*) FROM ops").fetchone()
    return int(pages) + int(rows)


async def measure_memory(directory: Path, scale: Scale) -> Numbers:
    """Measure the peak resident memory of a process that reads the tail of a history 100 times.

    The first process has an empty history.
    """
    found: list[float] = []
    lengths: Iterable[int] = (0, *scale.lengths)
    for length in lengths:
        path = directory / f"{length}.db"
        await make(path, NAME, history(length))
        command = [sys.executable, str(TAIL_READER), str(path), NAME]
        process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
        out, _ = await process.communicate()
        found.append(float(out))
    return {"lengths": list(lengths), "resident_mib": found}
