"""Durations, gathered and summed up."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Awaitable
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Summary:
    """What a number of calls cost, in seconds."""

    calls: int
    median: float
    p99: float


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
        seconds = sorted(self._seconds[what, who])
        p99 = seconds[min(len(seconds) - 1, int(len(seconds) * 0.99))]
        return Summary(len(seconds), statistics.median(seconds), p99)

    def table(self) -> dict[str, dict[str, dict[str, float]]]:
        """Everything measured: of each call, of each arm, its calls, median and p99."""
        found: dict[str, dict[str, dict[str, float]]] = {}
        for what, who in self._seconds:
            found.setdefault(what, {})[who] = asdict(self.summary(what, who))
        return found
