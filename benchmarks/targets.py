"""The speed targets, the figures of a run for each, and the reasons for missed targets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from backends import FLOOR, NORMAL, OURS, PEER

__all__ = ["TARGETS", "Outcome", "Target", "as_text", "judge", "reasons"]

Parts = dict[str, Any]
COLD, LONG = "read 20 after a write", "10000"


@dataclass(frozen=True)
class Target:
    """One speed target."""

    what: str
    """Description of the measured value."""
    bound: float
    is_upper_bound: bool
    measure: Callable[[Parts], float]
    """Returns the value from the parts of a run; KeyError or StopIteration if it is missing."""
    reason: str
    """The reason for missing the target, according to a profile; without figures."""


@dataclass(frozen=True)
class Outcome:
    """A target and the measured value; None if it was not measured."""

    target: Target
    measured: float | None

    @property
    def is_met(self) -> bool:
        """Return whether the target was measured and met."""
        if self.measured is None:
            return False
        bound = self.target.bound
        return self.measured <= bound if self.target.is_upper_bound else self.measured >= bound

    @property
    def verdict(self) -> str:
        """Return "met", "**missed**" or "not measured"."""
        return "not measured" if self.measured is None else "met" if self.is_met else "**missed**"


def _ratio(what: str, over: str, under: str, length: str = LONG) -> Callable[[Parts], float]:
    def measure(parts: Parts) -> float:
        backends = parts["calls"]["histories"][length]["calls"][what]
        return float(backends[over]["median"] / backends[under]["median"])

    return measure


def _cell(parts: Parts, items: int, latency: float) -> dict[str, Any]:
    return next(
        cell
        for cell in parts["sync"]["cells"]
        if (cell["items"], cell["latency_ms"]) == (items, latency)
    )


def _many(name: str) -> Callable[[Parts], float]:
    def measure(parts: Parts) -> float:
        if parts["concurrent"]["sessions"] != 1000:
            raise KeyError("fewer sessions")
        seconds = parts["concurrent"]["seconds"]
        return float(seconds[PEER] / seconds[name])

    return measure


def _busy(parts: Parts) -> float:
    reads = parts["busy"]["read 20"]
    return float(reads["busy"]["p99"] / reads["idle"]["p99"])


def _push(parts: Parts) -> float:
    cell = _cell(parts, 10_000, 20.0)
    return float(cell["one_by_one_seconds"] / cell["push_seconds"])


def _trips(parts: Parts) -> float:
    return float(_cell(parts, 100_000, 20.0)["tail_round_trips"])


def _share(parts: Parts) -> float:
    cell = _cell(parts, 100_000, 20.0)
    return float(cell["hydrate_cpu_seconds"] / cell["hydrate_seconds"])


def _idle(parts: Parts) -> float:
    rows = [row for row in parts["idle"]["rows"] if row["events"]]
    if max(row["sessions"] for row in rows) < 1000:
        raise KeyError("fewer sessions")
    return float(max(sum(row["an_hour"].values()) for row in rows))


def _flat(parts: Parts) -> float:
    row = parts["growth"]["rows"]["items in the history"]
    if row["sizes"][-1] < 1_000_000:
        raise KeyError("shorter histories")
    return float(row["exponents"][COLD])


def _held(parts: Parts) -> float:
    return float(parts["calls"]["histories"][LONG]["held_ms"]["read all"][OURS])


def _at_most(what: str, bound: float, measure: Callable[[Parts], float], reason: str) -> Target:
    return Target(what, bound, True, measure, reason)


def _at_least(what: str, bound: float, measure: Callable[[Parts], float], reason: str) -> Target:
    return Target(what, bound, False, measure, reason)


HOPS = (
    "The event loop must not wait for the disk. A write therefore passes its job to the writer "
    "thread and gets the result back through the event loop. Each direction wakes up a thread on a "
    "core that has gone to sleep by then. A write needs few SQL statements, because it reuses what "
    "the write before it has read. But a commit writes a page for each row that the history needs "
    "and a bare table does not (the operation, its number and its two indexes, its writer's "
    "frontier, the session), and the disk needs more time for these pages. The largest part apart "
    "from the disk is cold code: after a pause of some milliseconds, the code of SQLite, the event "
    "loop and the library takes several times as long as in a tight loop."
)
MANY = (
    "Jobs that wait together share one commit, and their callers share one wake-up. The rest of "
    "the time is spent on the rows of each job and on the event loop's own work for each task; "
    "the two alternate because both need Python's global interpreter lock."
)
TARGETS: tuple[Target, ...] = (
    _at_most(
        "read 20 of 10,000 after a write, relative to the floor",
        1.2,
        _ratio(COLD, OURS, FLOOR),
        "A read that is not cached uses the reader connection, which must first notice that the "
        "file has changed. The sort key of an item is wider than the floor's row number.",
    ),
    _at_most(
        "read 20 of 10,000 warm, relative to the floor",
        1.0,
        _ratio("read 20", OURS, FLOOR),
        "Both decode the same text. The session checks whether the file has changed; the floor "
        "runs a query.",
    ),
    _at_least(
        "read 20 of 10,000 warm, times as fast as AsyncSQLiteSession",
        15,
        _ratio("read 20", PEER, OURS),
        "Half of a warm read creates new objects from JSON, as in every variant. A third is two "
        "system calls that cannot be left out: they check whether another connection has committed "
        "(`PRAGMA data_version`, which takes two file locks) and whether the file still has its "
        "name (`stat`). The rest is Python code around them.",
    ),
    _at_least(
        "read all 10,000, times as fast as AsyncSQLiteSession",
        3,
        _ratio("read all", PEER, OURS),
        "A warm read decodes the cached text and reads no row from SQLite. What remains is the "
        "creation of new objects. The first read, and the first read after a write by another "
        "process, scan the file.",
    ),
    _at_most(
        "read all 10,000, longest time that the event loop is blocked, ms",
        5,
        _held,
        "A slice is decoded in one step, in a thread that holds Python's global interpreter lock "
        "for about a millisecond. If other processes use the cores too, the event loop then waits "
        "for its turn. Thousands of new objects also trigger Python's garbage collector; a full "
        "collection visits all objects of the program.",
    ),
    _at_most(
        "read 20 after a write, exponent from 100 items to 1,000,000",
        0.05,
        _flat,
        "The pages of a larger file fit less well into the caches of the machine.",
    ),
    _at_most(
        "read 20 at p99 while a backlog is pushed, relative to idle",
        1.5,
        _busy,
        "Acknowledgements do not invalidate the cache. But a read releases Python's global "
        "interpreter lock at each access to the file, and the threads that read the outbox and "
        "commit acknowledgements then take the lock for a short time. While one of them commits, "
        "the read uses the other connection, whose cached pages are out of date. If no core is "
        "free, the read also waits for its turn.",
    ),
    _at_most("add 1, relative to the floor", 1.3, _ratio("add 1", OURS, FLOOR), HOPS),
    _at_least("add 1, times as fast as AsyncSQLiteSession", 2, _ratio("add 1", PEER, OURS), HOPS),
    _at_least(
        "1,000 sessions that write at the same time, times as fast as AsyncSQLiteSession",
        8,
        _many(OURS),
        MANY,
    ),
    _at_least(
        "the same with durability=normal",
        8,
        _many(NORMAL),
        MANY,
    ),
    _at_least(
        "push of 10,000 items at 20 ms, times as fast as one request per item",
        200,
        _push,
        "Requests are sent one after the other, so that operations arrive in order. Their latency "
        "is a third of the time. Most of the rest is the time that the server needs to store a "
        "request, because each request waits for the response to the one before. The device's own "
        "work overlaps with it: encoding (a third of the device's processor time), and reading the "
        "event stream, which reports each of its own memories (a fifth).",
    ),
    _at_most(
        "first 200 of 100,000 items readable on a new device, round trips at 20 ms",
        3,
        _trips,
        "The server lists the memories of one second in any order, and this history was stored "
        "within a few seconds. The tail is known to be complete only when nearly all memories of "
        "the newest second are here, which are thousands. When the first page shows that the "
        "second continues, the next pages are requested in parallel. Pages beyond "
        "SyncOptions.parallel_requests are requested as responses arrive, and count as a further "
        "round trip.",
    ),
    _at_most(
        "hydration of 100,000 at 20 ms, share of the time that the device's processor is busy",
        0.5,
        _share,
        "The server only sends its memories, eight pages at a time. The device reads, checks and "
        "writes each memory in Python under the global interpreter lock, which takes several "
        "times as long. A quarter of the device's processor time goes to operations whose parts "
        "arrive on different pages and wait in the journal for each other; a fifth to assembling "
        "operations, checking their digests and writing them; a sixth to the garbage collector; "
        "an eighth to checking each memory field by field; the rest to HTTP and JSON.",
    ),
    _at_most(
        "a write on one device seen on another, ms over loopback (median)",
        100,
        lambda parts: float(parts["events"]["median"] * 1000),
        "A write waits for others that can be sent in the same request, and an event waits for the "
        "pull that it triggers.",
    ),
    _at_most(
        "requests per hour of an idle cache with events, at most",
        20,
        _idle,
        "Each poll and each audit of a session lists it, so the requests grow with their "
        "frequency.",
    ),
)


def judge(parts: Parts) -> list[Outcome]:
    """Return each target with its value in these parts."""
    return [Outcome(target, _measured(target, parts)) for target in TARGETS]


def _measured(target: Target, parts: Parts) -> float | None:
    try:
        return target.measure(parts)
    except (KeyError, StopIteration):
        return None


def as_text(found: list[Outcome]) -> str:
    """Return the targets as a Markdown table."""
    lines = ["| target | wanted | measured | |", "|---|---|---|---|"]
    for one in found:
        sign = "≤" if one.target.is_upper_bound else "≥"
        value = "" if one.measured is None else f"{one.measured:.3g}"
        lines.append(
            f"| {one.target.what} | {sign} {one.target.bound:g} | {value} | {one.verdict} |"
        )
    return "\n".join(lines)


def reasons(found: list[Outcome]) -> str:
    """Return the reason for each missed target, as a Markdown list."""
    missed = [one for one in found if one.measured is not None and not one.is_met]
    if not missed:
        return "No measured target is missed."
    return "\n".join(f"- **{one.target.what}**: {one.target.reason}" for one in missed)
