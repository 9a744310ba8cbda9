"""What is promised, and how it turned out: each target with what a run measured, and what stands in
the way of those that are missed."""

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
    """One promise."""

    what: str
    bound: float
    is_most: bool
    measure: Callable[[Parts], float]
    """From the parts of a run; KeyError or StopIteration where that was not measured."""
    why: str
    """What stands in the way where it is missed, as the profile says; no figures."""


@dataclass(frozen=True)
class Outcome:
    """A promise and what became of it; None: not measured."""

    target: Target
    measured: float | None

    @property
    def is_met(self) -> bool:
        """Whether it was measured and kept."""
        if self.measured is None:
            return False
        bound = self.target.bound
        return self.measured <= bound if self.target.is_most else self.measured >= bound

    @property
    def verdict(self) -> str:
        """In a word or two."""
        return "not measured" if self.measured is None else "met" if self.is_met else "**missed**"


def _times(what: str, over: str, under: str, length: str = LONG) -> Callable[[Parts], float]:
    def measure(parts: Parts) -> float:
        arms = parts["calls"]["histories"][length]["calls"][what]
        return float(arms[over]["median"] / arms[under]["median"])

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


def _at_most(what: str, bound: float, measure: Callable[[Parts], float], why: str) -> Target:
    return Target(what, bound, True, measure, why)


def _at_least(what: str, bound: float, measure: Callable[[Parts], float], why: str) -> Target:
    return Target(what, bound, False, measure, why)


HOPS = (
    "The event loop must not wait for the disk, so a write hands its job to the writing thread and "
    "gets its answer through the loop: one wake-up each way, of a core that sleeps by then. The "
    "statements are few, as it asks for nothing that the write before it knew; but a commit writes "
    "a page for each row that the history has and a bare table has not (the operation, its number "
    "and its two indexes, its writer's frontier, the session), and the disk takes longer for them. "
    "The largest part beside the disk is code that runs cold: after a pause of some milliseconds "
    "all of it, SQLite's, the event loop's and ours, takes several times as long as in a loop."
)
MANY = (
    "Jobs that wait together share a commit, and their callers a wake-up; what is left is the rows "
    "of each, and the loop's own work for each of its tasks, which takes turns with them at the "
    "interpreter's lock."
)
TARGETS: tuple[Target, ...] = (
    _at_most(
        "read 20 of 10,000 after a write, beside the floor",
        1.2,
        _times(COLD, OURS, FLOOR),
        "A read that is not warm goes to the reading connection, which must first see that the "
        "file has changed; the key of an item's place is wider than the floor's row number.",
    ),
    _at_most(
        "read 20 of 10,000 warm, beside the floor",
        1.0,
        _times("read 20", OURS, FLOOR),
        "Both decode the same text; ours asks the file for a change, the floor runs a query.",
    ),
    _at_least(
        "read 20 of 10,000 warm, times as fast as AsyncSQLiteSession",
        15,
        _times("read 20", PEER, OURS),
        "Half of a warm read is making fresh objects out of JSON, which every arm does, and a "
        "third the two questions to the system that cannot be left out: whether anybody has "
        "committed (`PRAGMA data_version`, two locks of a file) and whether the file still has its "
        "name (`stat`). The Python around them is what is left.",
    ),
    _at_least(
        "read all 10,000, times as fast as AsyncSQLiteSession",
        3,
        _times("read all", PEER, OURS),
        "A warm read decodes what is kept in memory, and asks SQLite for no row: what remains is "
        "the making of fresh objects. The first read, and the first after another process's write, "
        "scans the file once more.",
    ),
    _at_most(
        "read all 10,000, longest hold of the event loop, ms",
        5,
        _held,
        "A slice is decoded in one piece, in a thread that has the interpreter's lock meanwhile, "
        "about a millisecond; where others use the cores too, the loop then waits for its turn. "
        "Thousands of fresh objects also make Python collect garbage: a full collection, which "
        "looks at all that the program holds, is the program's own.",
    ),
    _at_most(
        "read 20 after a write, exponent from 100 items to 1,000,000",
        0.05,
        _flat,
        "The larger file's pages are further apart in the machine's caches.",
    ),
    _at_most(
        "read 20 at p99 while a backlog is pushed, beside idle",
        1.5,
        _busy,
        "Acknowledgements leave what is kept in memory as it is. But a read lets go of the "
        "interpreter's lock at each of its questions to the file, and the threads that read the "
        "outbox and commit acknowledgements take it then, for a moment each; while one commits, "
        "the read asks the other connection, whose pages are out of date; where the machine has no "
        "core to spare, it waits for its turn besides.",
    ),
    _at_most("add 1, beside the floor", 1.3, _times("add 1", OURS, FLOOR), HOPS),
    _at_least("add 1, times as fast as AsyncSQLiteSession", 2, _times("add 1", PEER, OURS), HOPS),
    _at_least(
        "1,000 sessions at once, times as fast as AsyncSQLiteSession",
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
        "push of 10,000 items at 20 ms, times as fast as one request an item",
        200,
        _push,
        "Requests follow each other, so that operations arrive in order: their latency is a third "
        "of the time, and what the server needs to store is most of the rest, for a body waits for "
        "the answer of the one before. What is to be done here is done meanwhile: encoding, "
        "a third of the device's processor seconds, and reading what the event stream tells of "
        "each of its own memories, a fifth.",
    ),
    _at_most(
        "first 200 of 100,000 items readable on a new device, round trips at 20 ms",
        3,
        _trips,
        "Within a second the server lists in any order, and this history was stored in a few: that "
        "the tail is whole is known when nearly all of the newest second is here, thousands of "
        "items. Its pages are asked for side by side once the first one shows that it does not end "
        "the second; what more of them there are than SyncOptions.parallel_requests follows as "
        "these are answered, and counts as a further round trip.",
    ),
    _at_most(
        "hydration of 100,000 at 20 ms, the device's own share of the time",
        0.5,
        _share,
        "The server has nothing to do but to send what it holds, eight pages at a time; here each "
        "memory is read, checked and written, in Python under one lock, which takes several times "
        "as long. Of the device's processor seconds a quarter goes to the parts of turns that the "
        "order within a second has laid on different pages, and that wait in the journal for each "
        "other; a fifth to putting operations together, checking their seals and writing them; a "
        "sixth to the collector of garbage; an eighth to checking each memory field by field; the "
        "rest to HTTP and JSON.",
    ),
    _at_most(
        "a write on one device seen on another, ms by loopback (median)",
        100,
        lambda parts: float(parts["events"]["median"] * 1000),
        "A write waits for others to leave with it, an event for the pull that it asks for.",
    ),
    _at_most(
        "requests an hour of an idle cache, at most, with events",
        20,
        _idle,
        "Each look at a session and each audit lists it: what is asked for grows with how often.",
    ),
)


def judge(parts: Parts) -> list[Outcome]:
    """Every target, with what these parts say about it."""
    return [Outcome(target, _measured(target, parts)) for target in TARGETS]


def _measured(target: Target, parts: Parts) -> float | None:
    try:
        return target.measure(parts)
    except (KeyError, StopIteration):
        return None


def as_text(found: list[Outcome]) -> str:
    """The targets as a table of Markdown."""
    lines = ["| target | wanted | measured | |", "|---|---|---|---|"]
    for one in found:
        sign = "≤" if one.target.is_most else "≥"
        value = "" if one.measured is None else f"{one.measured:.3g}"
        lines.append(
            f"| {one.target.what} | {sign} {one.target.bound:g} | {value} | {one.verdict} |"
        )
    return "\n".join(lines)


def reasons(found: list[Outcome]) -> str:
    """What stands in the way of each target that was missed, as a list of Markdown."""
    missed = [one for one in found if one.measured is not None and not one.is_met]
    if not missed:
        return "No target that was measured is missed."
    return "\n".join(f"- **{one.target.what}**: {one.target.why}" for one in missed)
