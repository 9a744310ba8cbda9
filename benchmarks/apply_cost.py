"""What applying operations from elsewhere costs, without the network: `make bench-apply`.

First a hydration: the memories of 100,000 operations as a server lists them, newest first in pages
of 500, are decoded and applied to a new journal file, one durable transaction a page. Each page is
made when its turn comes, and the time that this takes is not counted. Beside the seconds by the
clock stand those of the processor, which a busy machine and a slow disk do not touch.

Peak memory is traced in passes of their own, because tracing costs time: that it is the same for
10,000 operations and for --traced is what shows it to be bounded by the page.

Then, on histories of 1,000, 10,000 and 100,000 operations: an operation that sorts behind all
others, and one that sorts before all, in turn, each in a transaction of its own that is not synced
to the disk, which would hide everything else; and `get_items(20)` right after a pop and
`pop_item()`, durable as by default, of a session over the same file.

Numbers are for reading, not for a test to judge: the targets are printed beside them.
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
"""Operations of one writer before another's turn comes."""
SIZES = (1_000, 10_000, 100_000)
SHORT_TRACE = 10_000
MIB = 1 << 20

# What the project promises of itself: items a second, and how much dearer a late one may be.
ITEMS_A_SECOND = 20_000
LATE_RATIO = 3.0


@dataclass(frozen=True)
class Hydration:
    """A history brought into a new journal."""

    operations: int
    seconds: float
    cpu_seconds: float
    items_a_second: float
    items_a_cpu_second: float
    slowest_page: float
    journal_mib: float


@dataclass(frozen=True)
class Row:
    """What calls cost over a history of one length, in microseconds (medians)."""

    operations: int
    append_at_end: float
    late_before_all: float
    ratio: float
    get_items_20: float
    pop_item: float


class Conversation:
    """Operations of some writers in turn, each of one recorded item; made when asked for."""

    def __init__(self, length: int) -> None:
        self.length = length
        self._payloads = [text.decode() if isinstance(text, bytes) else text for text in _texts()]

    def operation(self, number: int) -> Operation:
        """The operation at that place of the history; those below 0 sort before all others."""
        run, place = divmod(number, RUN_LENGTH)
        if number < 0:
            dot, stamp = Dot("b" * 24, -number), (NOW_MS - 1 << 16) + number
        elif number >= self.length:
            dot, stamp = Dot("z" * 24, number - self.length + 1), (NOW_MS << 16) + self.length
        else:
            writer = "cdef"[run % WRITERS] * 24
            dot = Dot(writer, run // WRITERS * RUN_LENGTH + place + 1)
            stamp = (NOW_MS << 16) + run
        payload = self._payloads[number % len(self._payloads)]
        return Operation(dot, Kind.APPEND, stamp, NOW_MS + number, (payload,))

    def memories(self, number: int) -> list[dict[str, Any]]:
        """The same as the server would list it."""
        op = self.operation(number)
        return list(memories_of(op, op.digest(KEY), SESSION_ID))

    def pages(self) -> Iterator[list[dict[str, Any]]]:
        """The listing, newest first."""
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
    """Decode and apply, as a pull does with a page; how many operations were new."""
    parts = [part for memory in memories if isinstance(part := decode(memory, KEY), Part)]
    result = journal.write_blocking(
        lambda conn: inbox.apply_page(conn, SESSION_ID, parts, [], NOW_MS)
    )
    return result.new


def opened(path: Path, durability: str = "full") -> Journal:
    """The journal at a path."""
    journal = Journal(path, durability=durability)
    journal.open_blocking()
    return journal


def hydrate(path: Path, length: int) -> Hydration:
    """Bring a history into a new journal, and time that."""
    pages: list[float] = []
    applied, cpu = 0, 0.0
    journal = opened(path)
    try:
        for page in Conversation(length).pages():
            start, busy = time.perf_counter(), time.process_time()
            applied += apply(journal, page)
            pages.append(time.perf_counter() - start)
            cpu += time.process_time() - busy
        start = time.perf_counter()
    finally:
        journal.close_blocking()
    seconds = sum(pages) + time.perf_counter() - start  # closing writes the log back
    if applied != length:
        raise RuntimeError(f"{applied} of {length} operations were applied")
    size = path.stat().st_size / MIB
    return Hydration(length, seconds, cpu, length / seconds, length / cpu, max(pages), size)


def traced(path: Path, length: int) -> float:
    """The most MiB of Python's memory at a time while a history is brought in."""
    conversation = Conversation(length)
    journal = opened(path)
    tracemalloc.start()
    try:
        for page in conversation.pages():
            apply(journal, page)
        return tracemalloc.get_traced_memory()[1] / MIB
    finally:
        tracemalloc.stop()
        journal.close_blocking()


def resident() -> float:
    """The most MiB that this process has ever had."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (MIB if sys.platform == "darwin" else 1024)


def late_and_last(path: Path, length: int, rounds: int) -> tuple[float, float]:
    """Median seconds to apply an operation behind, and one before, all others."""
    conversation = Conversation(length)
    journal = opened(path, "normal")
    last: list[float] = []
    late: list[float] = []
    made: tuple[tuple[list[float], Callable[[int], int]], ...] = (
        (last, lambda number: length + number),
        (late, lambda number: -1 - number),
    )
    try:
        for number in range(rounds + 5):
            for seconds, place in made if number % 2 else made[::-1]:
                memories = conversation.memories(place(number))
                start = time.perf_counter()
                new = apply(journal, memories)
                seconds.append(time.perf_counter() - start)
                if new != 1:
                    raise RuntimeError("an operation was not new")
    finally:
        journal.close_blocking()
    return statistics.median(last[5:]), statistics.median(late[5:])  # the first ones warm up


async def calls(path: Path, rounds: int) -> tuple[float, float]:
    """Median seconds of a read of the tail that is not warm, and of a pop."""
    watch = Stopwatch()
    async with CachedSession(SESSION_ID, journal=path) as session:
        await session.get_items(20)
        for _ in range(rounds):
            await watch.time("pop", "", session.pop_item())
            await watch.time("tail", "", session.get_items(20))
    return watch.summary("tail", "").median, watch.summary("pop", "").median


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Hydrate, trace, measure, print."""
    print(
        f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, "
        f"{os.cpu_count()} cores; one item an operation, pages of {PAGE}, synchronous=FULL"
    )
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="cached-session-bench-") as temporary:
        directory = Path(temporary)
        hydrations = {}
        before = resident()
        for size in sorted({*SIZES[:2], arguments.operations}):
            hydrations[size] = hydrate(directory / f"{size}.db", size)
        grown = resident() - before
        for size in sorted(hydrations):
            path = directory / f"{size}.db"
            last, late = late_and_last(path, size, arguments.rounds)
            tail, pop = asyncio.run(calls(path, arguments.rounds))
            rows.append(Row(size, 1e6 * last, 1e6 * late, late / last, 1e6 * tail, 1e6 * pop))
        lengths = sorted({SHORT_TRACE, arguments.traced})
        peaks = {length: traced(directory / f"traced-{length}.db", length) for length in lengths}
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
    hydrations: list[Hydration], peaks: dict[int, float], grown: float, rows: list[Row]
) -> None:
    """Everything, for people."""
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
        print(f"peak of Python's memory over {length} operations: {peak:.1f} MiB")
    print(f"growth of the process over all of them: {grown:.1f} MiB")
    print(
        f"\n{'history':>10}{'behind all':>13}{'before all':>13}{'ratio':>8}"
        f"{'get_items(20)':>16}{'pop_item()':>13}"
    )
    for row in rows:
        verdict = "" if row.ratio <= LATE_RATIO else f"   MISSES {LATE_RATIO:g} x"
        print(
            f"{row.operations:>10}{row.append_at_end:>10.0f} µs{row.late_before_all:>10.0f} µs"
            f"{row.ratio:>8.2f}{row.get_items_20:>13.0f} µs{row.pop_item:>10.0f} µs{verdict}"
        )


def main() -> None:
    """Read the arguments, run, and keep the numbers if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--operations", type=int, default=SIZES[-1], help="the longest history")
    parser.add_argument("--traced", type=int, default=50_000, help="the longest with memory traced")
    parser.add_argument("--rounds", type=int, default=200, help="calls of each kind")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    arguments = parser.parse_args()
    numbers = run(arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
