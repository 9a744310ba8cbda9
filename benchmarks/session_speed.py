"""How fast a session is beside the agents' own `AsyncSQLiteSession`: `make bench`.

One process, one run, all contestants in turn within each round, so that what disturbs one disturbs
all. Each holds the same history of recorded conversations (10,000 items unless --items says
otherwise) in a file of its own, at equal durability: WAL with synchronous=FULL.

    peer         agents.extensions.memory.AsyncSQLiteSession
    local        CachedSession without a server
    online       CachedSession beside a devserver that adds 20 ms to each request
    unreachable  CachedSession with a URL where nothing listens, and the whole history unsent

Then the push of a backlog that long to the same devserver, beside one request an item (measured on
a few hundred items, one after the other, and extrapolated).

Numbers are for reading, not for a test to judge: the targets are printed beside them.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import os
import platform
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
from agents.extensions.memory import AsyncSQLiteSession
from dakera import AsyncDakeraClient

from cached_session import CachedSession
from corpus import Item, history, turns
from measure import Stopwatch

SESSION_ID = "benchmark"
LATENCY_MS = 20
PEER = "peer"
OURS = ("local", "online", "unreachable")
READ_TAIL, READ_ALL, ADD, POP = "get_items(20)", "get_items()", "add_items([1])", "pop_item()"
READ_TAIL_FRESH = "get_items(20) after a write"

# What the project promises of itself: (operation, at least this many times as fast as the peer).
TARGETS = {READ_TAIL: 5.0, ADD: 1.0}
PUSH_TARGET = 50.0

BLOCK = 5  # reads in a row, before it is the next one's turn
READ_ALL_EVERY = 8  # rounds: a read of everything takes hundreds of times as long as the others


def free_port() -> int:
    """A port where nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def devserver() -> AsyncIterator[str]:
    """A devserver in a process of its own, with latency; yields its URL."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = f"-m cached_session.cli.main devserver --port {port} --latency {LATENCY_MS}".split()
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, stdout=subprocess.DEVNULL
    )
    try:
        async with httpx.AsyncClient() as client:
            for _ in range(400):
                try:
                    (await client.get(f"{url}/health")).raise_for_status()
                    break
                except httpx.HTTPError:
                    await asyncio.sleep(0.05)
            else:
                raise RuntimeError("the devserver did not start")
        yield url
    finally:
        process.kill()
        await process.wait()


async def fill(directory: Path, batches: list[list[Item]]) -> None:
    """Write the history once for the peer and once for us, and copy ours for each contestant."""
    peer = AsyncSQLiteSession(SESSION_ID, directory / "peer.db")
    for batch in batches:
        await peer.add_items(batch)  # type: ignore[arg-type]
    await peer.close()
    async with CachedSession(SESSION_ID, journal=str(directory / "local.db")) as session:
        for batch in batches:
            await session.add_items(batch)  # type: ignore[arg-type]
    for name in OURS[1:]:
        shutil.copy(directory / "local.db", directory / f"{name}.db")


async def push(directory: Path, url: str, items: list[Item], sample: int) -> dict[str, float]:
    """Seconds to push the whole backlog, and what one request an item would have taken."""
    async with CachedSession.from_url(
        SESSION_ID, url=url, journal=str(directory / "online.db"), hydrate=False
    ) as session:
        start = time.perf_counter()
        await session.flush(timeout=600)
        ours = time.perf_counter() - start
        pending = session.status().pending
    if pending:
        raise RuntimeError(f"{pending} operations are still pending after the flush")
    async with AsyncDakeraClient(url) as client:
        start = time.perf_counter()
        for item in items[:sample]:
            await client.store_memory("one-by-one", json.dumps(item))
        each = (time.perf_counter() - start) / sample
    return {"ours": ours, "one_by_one": each * len(items), "sample": float(sample)}


async def rounds(directory: Path, url: str, items: list[Item], count: int) -> Stopwatch:
    """All operations of all contestants, interleaved, each round in another order."""
    watch = Stopwatch()
    logging.getLogger("cached_session").addHandler(logging.NullHandler())  # one is offline, we know
    dead = f"http://127.0.0.1:{free_port()}"
    async with AsyncExitStack() as stack:
        sessions: dict[str, Any] = {PEER: AsyncSQLiteSession(SESSION_ID, directory / "peer.db")}
        stack.push_async_callback(sessions[PEER].close)
        for name, server in zip(OURS, (None, url, dead), strict=True):
            journal = str(directory / f"{name}.db")
            sessions[name] = await stack.enter_async_context(
                CachedSession.from_url(SESSION_ID, url=server, journal=journal)
                if server
                else CachedSession(SESSION_ID, journal=journal)
            )
        for name, session in sessions.items():  # the first call opens: not what is measured
            found = len(await session.get_items())
            if found != len(items):
                raise RuntimeError(f"{name} holds {found} items instead of {len(items)}")
        names = list(sessions)
        gc.collect()
        gc.freeze()  # what was loaded until here is nobody's cost
        for number in range(count):
            order = names[number % len(names) :] + names[: number % len(names)]
            item = items[number % len(items)]
            for name in order:
                session = sessions[name]
                for _ in range(BLOCK):
                    await watch.time(READ_TAIL, name, session.get_items(20))
                await watch.time(ADD, name, session.add_items([item]))
                await watch.time(READ_TAIL_FRESH, name, session.get_items(20))
                await watch.time(POP, name, session.pop_item())
                if number % READ_ALL_EVERY == 0:
                    await watch.time(READ_ALL, name, session.get_items())
    return watch


def print_table(watch: Stopwatch) -> dict[str, dict[str, Any]]:
    """A line for each operation and contestant; returns the same for JSON."""
    out: dict[str, dict[str, Any]] = {}
    print(f"\n{'':28}{'':13}{'median':>11}{'p99':>11}{'beside the peer':>19}")
    for what in (READ_TAIL, READ_TAIL_FRESH, READ_ALL, ADD, POP):
        out[what] = {}
        peer = watch.summary(what, PEER)
        for name in (PEER, *OURS):
            one = watch.summary(what, name)
            ratio = peer.median / one.median
            beside = "" if name == PEER else f"{ratio:.2f} x as fast"
            verdict = ""
            if name != PEER and what in TARGETS:
                verdict = "" if ratio >= TARGETS[what] else f"   MISSES {TARGETS[what]:g} x"
            label = what if name == PEER else ""
            print(
                f"{label:28}{name:13}{one.median * 1000:8.3f} ms{one.p99 * 1000:8.3f} ms"
                f"{beside:>19}{verdict}"
            )
            out[what][name] = {**asdict(one), "ratio": ratio}
    return out


async def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Fill, push, measure, print."""
    items = history(arguments.items)
    batches = turns(items)
    print(
        f"{len(items)} items in {len(batches)} turns; Python {platform.python_version()}, "
        f"SQLite {sqlite3.sqlite_version}, {os.cpu_count()} cores"
    )
    with tempfile.TemporaryDirectory(prefix="cached-session-bench-") as temporary:
        directory = Path(temporary)
        start = time.perf_counter()
        await fill(directory, batches)
        print(f"filled in {time.perf_counter() - start:.1f} s")
        async with devserver() as url:
            pushed = await push(directory, url, items, min(arguments.sample, len(items)))
            watch = await rounds(directory, url, items, arguments.rounds)
    table = print_table(watch)
    ratio = pushed["one_by_one"] / pushed["ours"]
    print(
        f"\npush of {len(items)} items over {LATENCY_MS} ms: {pushed['ours']:.2f} s; one request "
        f"an item {pushed['one_by_one']:.0f} s (extrapolated from {pushed['sample']:.0f}): "
        f"{ratio:.0f} x as fast" + ("" if ratio >= PUSH_TARGET else f"   MISSES {PUSH_TARGET:g} x")
    )
    return {
        "items": len(items),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "operations": table,
        "push": {**pushed, "ratio": ratio},
    }


def main() -> None:
    """Read the arguments, run, and keep the numbers if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--items", type=int, default=10_000, help="length of the history")
    parser.add_argument("--rounds", type=int, default=400, help="calls of each kind")
    parser.add_argument("--sample", type=int, default=300, help="items pushed one by one")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    arguments = parser.parse_args()
    numbers = asyncio.run(run(arguments))
    if arguments.json:
        arguments.json.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
