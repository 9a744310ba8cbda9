"""The cost of a session call during a network fault, as a ratio to its cost online.

Each fault of the table in `tests/replication/fault_lines.py` is measured; the online calls run
before and after the fault.

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
"""The defaults, except that a dead connection is detected within two seconds."""
WARM_ROUNDS = 50
CALLS = ("add_items", "get_items", "pop_item")
TIMEOUT_SECONDS = 20.0

Times = dict[str, list[float]]


class LoopThread:
    """An event loop in a thread for the proxy, so that the proxy does not use the measured loop."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine on that loop, and return its result."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(TIMEOUT_SECONDS)

    @staticmethod
    async def _finish() -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def close(self) -> None:
        """End the loop and its thread."""
        self.run(self._finish())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


async def run_action(action: Any, line: Line, names: Names) -> None:
    """Begin or end a fault, on the loop of the proxy."""
    outcome = action(line, names)
    if asyncio.iscoroutine(outcome):
        await outcome


async def time_rounds(session: CachedSession, count: int) -> Times:
    """Run rounds of adding two items, reading the tail and popping; return the seconds by call."""
    times: Times = {name: [] for name in CALLS}
    item: Any = {"role": "user", "content": "Is there a direct flight to Detroit on Sunday?"}
    for _ in range(count):
        for name, call in (
            ("add_items", session.add_items([item, item])),
            ("get_items", session.get_items(20)),
            ("pop_item", session.pop_item()),
        ):
            start = time.perf_counter()
            await call
            times[name].append(time.perf_counter() - start)
    return times


async def wait_for(session: CachedSession, state: str) -> None:
    """Wait until the session has the state."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while session.status().state != state:
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"the session was not {state} after {TIMEOUT_SECONDS:g} s: {session.status()}"
            )
        await asyncio.sleep(0.02)


async def measure_fault(fault: Fault, directory: Path, count: int) -> tuple[Times, Times]:
    """Return the times of calls online (half before and half after the fault) and during it."""
    await asyncio.to_thread(directory.mkdir)
    proxy_thread = LoopThread()
    with DevServer() as server, Names().patched() as names:
        line = Line(server, directory if fault.tls else None)
        if line.tls is not None:
            os.environ["SSL_CERT_FILE"] = str(line.tls.trusted)
        proxy_thread.run(line.listen())
        session = CachedSession.from_url(
            "talk", url=line.url(fault.host), journal=directory / "j.db", options=OPTIONS
        )
        await time_rounds(session, WARM_ROUNDS)
        await session.sync(timeout=TIMEOUT_SECONDS)
        line.backup = server.snapshot()
        online = await time_rounds(session, count // 2)
        await session.sync(timeout=TIMEOUT_SECONDS)
        await asyncio.to_thread(proxy_thread.run, run_action(fault.begin, line, names))
        if fault.says is not None:
            await session.add_items([{"role": "user", "content": "apart"}])
            await wait_for(session, "offline")
        broken = await time_rounds(session, count)
        await asyncio.to_thread(proxy_thread.run, run_action(fault.end, line, names))
        await session.sync(timeout=3 * TIMEOUT_SECONDS)
        after = await time_rounds(session, count // 2)
        for name in CALLS:
            online[name] += after[name]
        await session.close()
        proxy_thread.run(line.refuse())
        proxy_thread.close()
        os.environ.pop("SSL_CERT_FILE", None)
    return online, broken


def p99(times: list[float]) -> float:
    """Return the 99th percentile."""
    return sorted(times)[int(0.99 * (len(times) - 1))]


async def main() -> None:
    """Measure every fault and print a Markdown table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200, help="rounds of calls for each fault")
    count = parser.parse_args().rounds
    logging.getLogger("cached_session").addHandler(logging.NullHandler())
    print("| fault | " + " | ".join(CALLS) + " | longest call online | longest call broken |")
    print("|---|" + "---|" * (len(CALLS) + 2))
    with tempfile.TemporaryDirectory(prefix="cached-session-faults-") as temporary:
        for number, fault in enumerate(FAULTS):
            online, broken = await measure_fault(
                replace(fault), Path(temporary) / str(number), count
            )
            cells = []
            for name in CALLS:
                ratio = statistics.median(broken[name]) / statistics.median(online[name])
                tail = p99(broken[name]) / p99(online[name])
                cells.append(f"{ratio:.2f} ({tail:.2f})")
            longest = [1000 * max(max(found[name]) for name in CALLS) for found in (online, broken)]
            cells += [f"{milliseconds:.0f} ms" for milliseconds in longest]
            print(f"| {fault.name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
