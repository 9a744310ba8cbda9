"""What a session call costs while something is wrong on the way to the server, as a ratio to what
it costs online: each fault of the tests' table, warm, online before and after it.

    python -m benchmarks.fault_cost
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

from cached_session import CachedSession, SyncOptions
from cached_session.devserver import DevServer
from tests.replication.fault_lines import FAULTS, Fault, Line, Names

OPTIONS = SyncOptions(request_timeout=2.0, connect_timeout=2.0, audit_interval=2.0)
"""As everywhere, but that a dead connection is noticed in two seconds."""
WARM_ROUNDS = 50
CALLS = ("add_items", "get_items", "pop_item")
PATIENCE_SECONDS = 20.0

Times = dict[str, list[float]]


class Elsewhere:
    """An event loop in a thread, for the proxy: it takes no turns of the one that is measured."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def do(self, what: Coroutine[Any, Any, Any]) -> Any:
        """Do something on that loop, and wait for it."""
        return asyncio.run_coroutine_threadsafe(what, self.loop).result(PATIENCE_SECONDS)

    @staticmethod
    async def _finish() -> None:
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    def close(self) -> None:
        """End the loop and its thread."""
        self.do(self._finish())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


async def step(action: Any, line: Line, names: Names) -> None:
    """A fault's beginning or end, on the proxy's own loop."""
    outcome = action(line, names)
    if asyncio.iscoroutine(outcome):
        await outcome


async def rounds(session: CachedSession, count: int) -> Times:
    """So many turns: two items, a read of the tail, a pop."""
    taken: Times = {name: [] for name in CALLS}
    item: Any = {"role": "user", "content": "Is there a direct flight to Detroit on Sunday?"}
    for _ in range(count):
        for name, call in (
            ("add_items", session.add_items([item, item])),
            ("get_items", session.get_items(20)),
            ("pop_item", session.pop_item()),
        ):
            began = time.perf_counter()
            await call
            taken[name].append(time.perf_counter() - began)
    return taken


async def wait_for(session: CachedSession, state: str) -> None:
    """Wait until the status says so."""
    until = time.monotonic() + PATIENCE_SECONDS
    while session.status().state != state:
        if time.monotonic() > until:
            raise TimeoutError(f"not {state}: {session.status()}")
        await asyncio.sleep(0.02)


async def measure(fault: Fault, directory: Path, count: int) -> tuple[Times, Times]:
    """A device's calls online, half of them before and half after, and within the fault."""
    await asyncio.to_thread(directory.mkdir)
    elsewhere = Elsewhere()
    with DevServer() as server, Names().patched() as names:
        line = Line(server, directory if fault.tls else None)
        if line.tls is not None:
            os.environ["SSL_CERT_FILE"] = str(line.tls.trusted)
        elsewhere.do(line.listen())
        session = CachedSession.from_url(
            "talk", url=line.url(fault.host), journal=directory / "j.db", options=OPTIONS
        )
        await rounds(session, WARM_ROUNDS)
        await session.sync(timeout=PATIENCE_SECONDS)
        line.backup = server.snapshot()
        online = await rounds(session, count // 2)
        await session.sync(timeout=PATIENCE_SECONDS)
        await asyncio.to_thread(elsewhere.do, step(fault.begin, line, names))
        if fault.says is not None:
            await session.add_items([{"role": "user", "content": "apart"}])
            await wait_for(session, "offline")
        broken = await rounds(session, count)
        await asyncio.to_thread(elsewhere.do, step(fault.end, line, names))
        await session.sync(timeout=3 * PATIENCE_SECONDS)
        after = await rounds(session, count // 2)
        for name in CALLS:
            online[name] += after[name]
        await session.close()
        elsewhere.do(line.refuse())
        elsewhere.close()
        os.environ.pop("SSL_CERT_FILE", None)
    return online, broken


def worst(times: list[float]) -> float:
    """The 99th percentile."""
    return sorted(times)[int(0.99 * (len(times) - 1))]


async def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    count = parser.parse_args().rounds
    logging.getLogger("cached_session").addHandler(logging.NullHandler())
    print("| fault | " + " | ".join(CALLS) + " | longest call online | longest call broken |")
    print("|---|" + "---|" * (len(CALLS) + 2))
    with tempfile.TemporaryDirectory(prefix="cached-session-faults-") as temporary:
        for number, fault in enumerate(FAULTS):
            online, broken = await measure(replace(fault), Path(temporary) / str(number), count)
            cells = []
            for name in CALLS:
                ratio = statistics.median(broken[name]) / statistics.median(online[name])
                tail = worst(broken[name]) / worst(online[name])
                cells.append(f"{ratio:.2f} ({tail:.2f})")
            longest = [1000 * max(max(found[name]) for name in CALLS) for found in (online, broken)]
            cells += [f"{moment:.0f} ms" for moment in longest]
            print(f"| {fault.name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
