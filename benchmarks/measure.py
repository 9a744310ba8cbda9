"""Durations, gathered and summed up; how long the loop was held; how a cost grows."""

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
"""What a part of the benchmark finds out: plain JSON."""

BEAT = 0.0005
"""Seconds between two beats of the task that tells how long it was held up."""


@dataclass(frozen=True)
class Summary:
    """What a number of calls cost, in seconds."""

    calls: int
    median: float
    p99: float


def summed_up(seconds: Sequence[float]) -> Summary:
    """Median and 99th percentile."""
    ordered = sorted(seconds)
    p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    return Summary(len(ordered), statistics.median(ordered), p99)


class Stopwatch:
    """Times calls under (what, who)."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[str, str], list[float]] = defaultdict(list)

    async def time(self, what: str, who: str, call: Awaitable[Any]) -> None:
        """Await the call and keep how long it took."""
        start = time.perf_counter()
        await call
        self._seconds[what, who].append(time.perf_counter() - start)

    def summary(self, what: str, who: str) -> Summary:
        """Median and 99th percentile."""
        return summed_up(self._seconds[what, who])

    def table(self) -> dict[str, dict[str, dict[str, float]]]:
        """Everything measured: of each call, of each arm, its calls, median and p99."""
        found: dict[str, dict[str, dict[str, float]]] = {}
        for what, who in self._seconds:
            found.setdefault(what, {})[who] = asdict(self.summary(what, who))
        return found


async def held_ms(work: Awaitable[Any]) -> float:
    """Do the work; the longest time, in milliseconds, that another task was held up by it."""
    worst, running = 0.0, True

    async def beat() -> None:
        nonlocal worst
        last = time.perf_counter()
        while running:
            await asyncio.sleep(BEAT)
            now = time.perf_counter()
            worst, last = max(worst, now - last - BEAT), now

    beating = asyncio.ensure_future(beat())
    try:
        await asyncio.sleep(2 * BEAT)
        await work
    finally:
        running = False
        await beating
    return worst * 1000


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """The slope of the costs over the sizes, both as logarithms: 0 is flat, 1 is linear."""
    xs, ys = [math.log(size) for size in sizes], [math.log(cost) for cost in costs]
    x, y = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True)) / sum(
        (a - x) ** 2 for a in xs
    )


def say(what: str) -> None:
    """Progress, for whoever waits."""
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)
