"""The cost of applying operations of other devices, without a network: `make bench-apply`.

The first part is a hydration. The memories of 100,000 operations are decoded and applied to a new
journal, in the order of a server's listing: newest first, in pages of 500, one durable transaction
a page. The time to make a page is not counted. Processor seconds are measured besides elapsed
seconds, because a busy machine or a slow disk does not change them.

Peak memory is traced in separate passes, because tracing takes time. If the peak is equal for
10,000 operations and for --traced, it is bounded by the size of a page.

The second part uses histories of 1,000, 10,000 and 100,000 operations. It applies, by turns, an
operation that sorts after all others and one that sorts before all. Each has its own transaction,
which is not synced to the disk, because a sync would take longer than everything else. Then it
measures `get_items(20)` after a pop, and `pop_item()`, with the default durability.

The targets are printed next to the figures. No test checks the figures.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import resource
import sqlite3
import statistics
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cached_session import CachedSession
from cached_session.history.ids import session_key
from cached_session.history.ops import Dot, Kind, Operation
from cached_session.history.parts import Part
from cached_session.history.session_ref import SessionRef
from cached_session.journal.journal import Journal
from cached_session.journal.sqlite.codec import encode_items
from cached_session.journal.tables import inbox
from cached_session.remote.wire import decode, memories_of
from conversations import history
from measure import Stopwatch

SESSION_ID = "benchmark"
KEY = session_key(SESSION_ID)
NOW_MS = 1_700_000_000_000
PAGE = 500
WRITERS = 4
RUN_LENGTH = 250
"""Consecutive operations of one writer."""
SIZES = (1_000, 10_000, 100_000)
SHORT_TRACE = 10_000
MIB = 1 << 20

# The targets: items a second, and the cost of a late operation relative to one at the end.
ITEMS_A_SECOND = 20_000
LATE_RATIO = 3.0


@dataclass(frozen=True)
class Hydration:
    """The cost of the hydration of a new journal."""

    operations: int
    seconds: float
    cpu_seconds: float
    items_a_second: float
    items_a_cpu_second: float
    slowest_page: float
    journal_mib: float


@dataclass(frozen=True)
class CallCosts:
    """The median cost of calls on a history of one length, in microseconds."""

    operations: int
    append_at_end: float
    late_before_all: float
    ratio: float
    get_items_20: float
    pop_item: float


class Conversation:
    """A history of several writers in turn, one recorded item an operation; made on demand."""

    def __init__(self, length: int) -> None:
        self.length = length
        self._payloads = [text.decode() if isinstance(text, bytes) else text for text in _texts()]

    def operation(self, number: int) -> Operation:
        """Return the operation with this position; negative positions sort before all others."""
        run, position = divmod(number, RUN_LENGTH)
        if number < 0:
            dot, stamp = Dot("b" * 24, -number), (NOW_MS - 1 << 16) + number
        elif number >= self.length:
            dot, stamp = Dot("z" * 24, number - self.length + 1), (NOW_MS << 16) + self.length
        else:
            writer = "cdef"[run % WRITERS] * 24
            dot = Dot(writer, run // WRITERS * RUN_LENGTH + position + 1)
            stamp = (NOW_MS << 16) + run
        payload = self._payloads[number % len(self._payloads)]
        return Operation(dot, Kind.APPEND, stamp, NOW_MS + number, (payload,))

    def memories(self, number: int) -> list[dict[str, Any]]:
        """Return the memories of an operation, as the server lists them."""
        op = self.operation(number)
        return list(memories_of(op, op.digest(KEY), SESSION_ID))

    def pages(self) -> Iterator[list[dict[str, Any]]]:
        """Yield the pages of the listing, newest first."""
        page: list[dict[str, Any]] = []
        for number in reversed(range(self.length)):
            page += reversed(self.memories(number))
            if len(page) >= PAGE:
                yield page
                page = []
        if page:
            yield page


def _texts() -> list[Any]:
    return [text for text, _ in encode_items(history(2_000))]


def apply(journal: Journal, memories: list[dict[str, Any]]) -> int:
    """Decode and apply a page as a pull does; return the number of new operations."""
    parts = [part for memory in memories if isinstance(part := decode(memory, KEY), Part)]
    result = journal.write_blocking(
        lambda conn: inbox.apply_page(conn, SessionRef.of(SESSION_ID), parts, [], NOW_MS)
    )
    return result.new


def open_journal(path: Path, durability: str = "full") -> Journal:
    """Open the journal at a path."""
    journal = Journal(path, durability=durability)
    journal.open_blocking()
    return journal


def hydrate(path: Path, length: int) -> Hydration:
    """Apply a history to a new journal and measure the time."""
    pages: list[float] = []
    applied, cpu = 0, 0.0
    journal = open_journal(path)
    try:
        for page in Conversation(length).pages():
            start, busy = time.perf_counter(), time.process_time()
            applied += apply(journal, page)
            pages.append(time.perf_counter() - start)
            cpu += time.process_time() - busy
        start = time.perf_counter()
    finally:
        journal.close_blocking()
    seconds = sum(pages) + time.perf_counter() - start  # close() copies the log into the database
    if applied != length:
        raise RuntimeError(f"{applied} of {length} operations were applied")
    size = path.stat().st_size / MIB
    return Hydration(length, seconds, cpu, length / seconds, length / cpu, max(pages), size)


def traced_peak_mib(path: Path, length: int) -> float:
    """Return the peak of Python's memory in MiB while a history is applied."""
    conversation = Conversation(length)
    journal = open_journal(path)
    tracemalloc.start()
    try:
        for page in conversation.pages():
            apply(journal, page)
        return tracemalloc.get_traced_memory()[1] / MIB
    finally:
        tracemalloc.stop()
        journal.close_blocking()


def peak_resident_mib() -> float:
    """Return the peak resident memory of this process in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (MIB if sys.platform == "darwin" else 1024)


def time_last_and_first(path: Path, length: int, rounds: int) -> tuple[float, float]:
    """Return the median seconds to apply an operation after, and one before, all others."""
    conversation = Conversation(length)
    journal = open_journal(path, "normal")
    last: list[float] = []
    first: list[float] = []
    positions: tuple[tuple[list[float], Callable[[int], int]], ...] = (
        (last, lambda number: length + number),
        (first, lambda number: -1 - number),
    )
    try:
        for number in range(rounds + 5):
            for seconds, position in positions if number % 2 else positions[::-1]:
                memories = conversation.memories(position(number))
                start = time.perf_counter()
                new = apply(journal, memories)
                seconds.append(time.perf_counter() - start)
                if new != 1:
                    raise RuntimeError("an operation was not new")
    finally:
        journal.close_blocking()
    return statistics.median(last[5:]), statistics.median(first[5:])  # without the warm-up


async def call_times(path: Path, rounds: int) -> tuple[float, float]:
    """Return the median seconds of a read of the tail after a pop, and of a pop."""
    watch = Stopwatch()
    async with CachedSession(SESSION_ID, journal=path) as session:
        await session.get_items(20)
        for _ in range(rounds):
            await watch.time("pop", "", session.pop_item())
            await watch.time("tail", "", session.get_items(20))
    return watch.summary("tail", "").median, watch.summary("pop", "").median


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure everything, print it, and return the figures."""
    print(
        f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, "
        f"{os.cpu_count()} cores; one item an operation, pages of {PAGE}, synchronous=FULL"
    )
    rows: list[CallCosts] = []
    with tempfile.TemporaryDirectory(prefix="cached-session-bench-") as temporary:
        directory = Path(temporary)
        hydrations = {}
        before = peak_resident_mib()
        for size in sorted({*SIZES[:2], arguments.operations}):
            hydrations[size] = hydrate(directory / f"{size}.db", size)
        grown = peak_resident_mib() - before
        for size in sorted(hydrations):
            path = directory / f"{size}.db"
            last, late = time_last_and_first(path, size, arguments.rounds)
            tail, pop = asyncio.run(call_times(path, arguments.rounds))
            rows.append(CallCosts(size, 1e6 * last, 1e6 * late, late / last, 1e6 * tail, 1e6 * pop))
        lengths = sorted({SHORT_TRACE, arguments.traced})
        peaks = {
            length: traced_peak_mib(directory / f"traced-{length}.db", length) for length in lengths
        }
    print_tables(list(hydrations.values()), peaks, grown, rows)
    return {
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "page": PAGE,
        "hydration": [asdict(one) for one in hydrations.values()],
        "traced_peak_mib": peaks,
        "resident_growth_mib": grown,
        "calls_us": [asdict(row) for row in rows],
    }


def print_tables(
    hydrations: list[Hydration], peaks: dict[int, float], grown: float, rows: list[CallCosts]
) -> None:
    """Print the figures as tables."""
    print(
        f"\n{'hydrated':>10}{'seconds':>10}{'items/s':>10}{'items/cpu s':>13}"
        f"{'slowest page':>15}{'file':>12}"
    )
    for one in hydrations:
        verdict = "" if one.items_a_second >= ITEMS_A_SECOND else f"   MISSES {ITEMS_A_SECOND}/s"
        print(
            f"{one.operations:>10}{one.seconds:>10.2f}{one.items_a_second:>10.0f}"
            f"{one.items_a_cpu_second:>13.0f}"
            f"{one.slowest_page * 1000:>12.0f} ms{one.journal_mib:>8.1f} MiB{verdict}"
        )
    for length, peak in peaks.items():
        print(f"peak of Python's memory with {length} operations: {peak:.1f} MiB")
    print(f"growth of the resident memory of the process: {grown:.1f} MiB")
    print(
        f"\n{'history':>10}{'after all':>13}{'before all':>13}{'ratio':>8}"
        f"{'get_items(20)':>16}{'pop_item()':>13}"
    )
    for row in rows:
        verdict = "" if row.ratio <= LATE_RATIO else f"   MISSES {LATE_RATIO:g} x"
        print(
            f"{row.operations:>10}{row.append_at_end:>10.0f} µs{row.late_before_all:>10.0f} µs"
            f"{row.ratio:>8.2f}{row.get_items_20:>13.0f} µs{row.pop_item:>10.0f} µs{verdict}"
        )


def main() -> None:
    """Parse the arguments, measure, and write the figures to a file if requested."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--operations", type=int, default=SIZES[-1], help="operations in the longest history"
    )
    parser.add_argument(
        "--traced",
        type=int,
        default=50_000,
        help="operations in the longest history with traced memory",
    )
    parser.add_argument("--rounds", type=int, default=200, help="calls of each kind")
    parser.add_argument("--json", type=Path, help="write the figures to this JSON file")
    arguments = parser.parse_args()
    numbers = run(arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
