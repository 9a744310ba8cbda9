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
    "The event loop must not wait for the disk, so a write passes its job to the writer thread and "
    "gets the result through the event loop: one wake-up in each direction, of a core that may "
    "sleep. The write runs few statements, because it reuses what the write before it read. But a "
    "commit writes a page for each row that the history has and a bare table does not have (the "
    "operation, its number and its two indexes, the frontier of its writer, the session), and the "
    "disk takes longer for them. The largest part besides the disk is cold code: after a pause of "
    "some milliseconds, the code of SQLite, the event loop and this library takes several times "
    "as long as in a loop."
)
MANY = (
    "Waiting jobs share a commit, and their callers share a wake-up. What remains is the rows of "
    "each job, and the work of the event loop for each task; both compete for the interpreter lock."
)
TARGETS: tuple[Target, ...] = (
    _at_most(
        "read 20 of 10,000 after a write, relative to the floor",
        1.2,
        _ratio(COLD, OURS, FLOOR),
        "A read after a write uses the reading connection, which must first detect the change of "
        "the file. The sort key of an item is longer than the row number of the floor.",
    ),
    _at_most(
        "read 20 of 10,000 warm, relative to the floor",
        1.0,
        _ratio("read 20", OURS, FLOOR),
        "Both decode the same text. This library checks the file; the floor runs a query.",
    ),
    _at_least(
        "read 20 of 10,000 warm, times as fast as AsyncSQLiteSession",
        15,
        _ratio("read 20", PEER, OURS),
        "Half of a warm read creates objects from JSON, as in every backend. A third goes to two "
        "required checks: whether another connection has committed (`PRAGMA data_version`, two "
        "file locks), and whether the file still has its name (`stat`). The rest is Python code.",
    ),
    _at_least(
        "read all 10,000, times as fast as AsyncSQLiteSession",
        3,
        _ratio("read all", PEER, OURS),
        "A warm read decodes cached text without a query, so the rest of its time creates "
        "objects. The first read, and the first one after a write of another process, scan the "
        "file.",
    ),
    _at_most(
        "read all 10,000, longest blocking of the event loop, ms",
        5,
        _held,
        "Each slice is decoded in a thread that holds the interpreter lock for about a "
        "millisecond; if other processes use the cores too, the event loop waits longer. Thousands "
        "of new objects also trigger garbage collection, and a full collection visits all objects "
        "of the program.",
    ),
    _at_most(
        "read 20 after a write, exponent from 100 items to 1,000,000",
        0.05,
        _flat,
        "The pages of a larger file are less likely to be in the caches of the processor.",
    ),
    _at_most(
        "read 20 at p99 during a push of a backlog, relative to idle",
        1.5,
        _busy,
        "Acknowledgements do not invalidate the tail cache. But a read releases the interpreter "
        "lock at each check of the file, and the threads that read the outbox and commit "
        "acknowledgements then take the lock for a short time. During a commit, the read uses the "
        "other connection, whose pages are out of date. Without a free core, it also waits for a "
        "core.",
    ),
    _at_most("add 1, relative to the floor", 1.3, _ratio("add 1", OURS, FLOOR), HOPS),
    _at_least("add 1, times as fast as AsyncSQLiteSession", 2, _ratio("add 1", PEER, OURS), HOPS),
    _at_least(
        "1,000 concurrent sessions, times as fast as AsyncSQLiteSession",
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
        "is a third of the time, and most of the rest is the time of the server to store, because "
        "each request waits for the response of the one before. The device works meanwhile: a "
        "third of its processor seconds is encoding, and a fifth is reading the events of its own "
        "memories.",
    ),
    _at_most(
        "first 200 of 100,000 items readable on a new device, round trips at 20 ms",
        3,
        _trips,
        "The server lists the memories of one second in any order, and this history was stored "
        "within a few seconds. So the tail is complete only when nearly all memories of the newest "
        "second have arrived, which are thousands. Their pages are fetched concurrently after the "
        "first page. Pages over SyncOptions.parallel_requests wait for earlier responses and count "
        "as a further round trip.",
    ),
    _at_most(
        "hydration of 100,000 at 20 ms, processor time relative to elapsed time",
        0.5,
        _share,
        "The server only sends stored memories, eight pages at a time. The device reads, checks "
        "and writes each memory in Python under one lock, which takes several times as long. Of "
        "its processor seconds, a quarter goes to operations whose parts are on different pages, "
        "because of the order within a second, and wait in the journal until all have arrived; a "
        "fifth to assembling operations, checking their seals and writing them; a sixth to garbage "
        "collection; an eighth to checking each field of a memory; and the rest to HTTP and JSON.",
    ),
    _at_most(
        "a write on one device seen on another, ms by loopback (median)",
        100,
        lambda parts: float(parts["events"]["median"] * 1000),
        "A write waits a short time for others to be sent with it, and an event starts a pull.",
    ),
    _at_most(
        "most requests an hour of an idle cache with events",
        20,
        _idle,
        "Each poll and each audit of a session lists it, so the number depends on their intervals.",
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
