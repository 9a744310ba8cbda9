"""Tools to measure: a stopwatch with medians, blocking of the event loop, growth exponents."""

from __future__ import annotations

import asyncio
import math
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Awaitable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

Numbers = dict[str, Any]
"""The results of a part of the benchmark, as a JSON object."""

TICK_SECONDS = 0.0005
"""Seconds between two ticks of the task that measures how long it was blocked."""


@dataclass(frozen=True)
class Summary:
    """The cost of calls in seconds."""

    calls: int
    median: float
    p99: float


def summarize(seconds: Sequence[float]) -> Summary:
    """Return the number, median and 99th percentile of durations."""
    ordered = sorted(seconds)
    p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    return Summary(len(ordered), statistics.median(ordered), p99)


class Stopwatch:
    """Collects the seconds of calls by (call, backend)."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[str, str], list[float]] = defaultdict(list)

    async def time(self, call_name: str, backend: str, call: Awaitable[Any]) -> None:
        """Await the call and record its seconds."""
        start = time.perf_counter()
        await call
        self._seconds[call_name, backend].append(time.perf_counter() - start)

    def summary(self, call_name: str, backend: str) -> Summary:
        """Return the summary of a call on a backend."""
        return summarize(self._seconds[call_name, backend])

    def table(self) -> dict[str, dict[str, dict[str, float]]]:
        """Return {call: {backend: summary}} of everything that was measured."""
        found: dict[str, dict[str, dict[str, float]]] = {}
        for call_name, backend in self._seconds:
            found.setdefault(call_name, {})[backend] = asdict(self.summary(call_name, backend))
        return found


async def blocked_ms(work: Awaitable[Any]) -> float:
    """Run the work and return the longest time in milliseconds that it blocked another task."""
    worst, running = 0.0, True

    async def tick() -> None:
        nonlocal worst
        last = time.perf_counter()
        while running:
            await asyncio.sleep(TICK_SECONDS)
            now = time.perf_counter()
            worst, last = max(worst, now - last - TICK_SECONDS), now

    ticking = asyncio.ensure_future(tick())
    try:
        await asyncio.sleep(2 * TICK_SECONDS)
        await work
    finally:
        running = False
        await ticking
    return worst * 1000


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Return the slope of log(cost) over log(size): 0 is constant, 1 is linear."""
    xs, ys = [math.log(size) for size in sizes], [math.log(cost) for cost in costs]
    x, y = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True)) / sum(
        (a - x) ** 2 for a in xs
    )


def print_progress(text: str) -> None:
    """Print a line with the time to standard error."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)
