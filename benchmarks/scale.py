"""Sizes of the benchmark: `FULL`, `ALL`, `QUICK`, and `SMOKE` to test the benchmark itself."""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["FULL", "QUICK", "SMOKE", "Scale"]


@dataclass(frozen=True)
class Scale:
    """The sizes and rounds of each part."""

    name: str
    calls: tuple[tuple[int, int], ...]
    """(items in the history, rounds) for the calls of all backends."""
    lengths: tuple[int, ...]
    """Items in the histories for growth and memory."""
    rounds: int
    """Calls of each kind at each size, for growth."""
    concurrent: int
    """Sessions that write concurrently."""
    concurrent_rounds: int
    """Repetitions of the concurrent writes."""
    cells: tuple[tuple[int, float], ...]
    """(items, added latency in ms) for push, hydration and reconnect."""
    sample: int
    """Items that are stored with one request each, for each of `cells`."""
    busy: tuple[int, int]
    """(items of a backlog, rounds) for reads during a push."""
    events: int
    """Writes that one device waits for from another."""
    fan_out: int
    """Items that are stored while devices listen to the event stream."""
    idle: tuple[int, ...]
    """Open sessions of an idle cache."""
    hours: int
    """Simulated hours of an idle cache."""
    sessions: tuple[int, ...]
    """Sessions in one journal."""
    writers: tuple[int, ...]
    """Writers of one history."""
    written: int
    """Operations of the history with several writers."""
    pending: tuple[int, ...]
    """Pending operations."""
    tombstones: tuple[int, ...]
    """Popped items."""
    disk: int
    """Items of the journal for file size and bytes on the wire."""


FULL = Scale(
    name="full",
    calls=((100, 60), (10_000, 160), (1_000_000, 24)),
    lengths=(100, 1000, 10_000, 100_000, 1_000_000),
    rounds=60,
    concurrent=1000,
    concurrent_rounds=3,
    cells=(
        *((items, latency) for items in (1000, 10_000) for latency in (0.0, 20.0, 200.0)),
        (100_000, 20.0),
    ),
    sample=40,
    busy=(10_000, 3),
    events=60,
    fan_out=1000,
    idle=(1, 100, 1000),
    hours=2,
    sessions=(1, 10, 100, 1000, 10_000),
    writers=(1, 10, 100, 1000),
    written=10_000,
    pending=(10, 100, 1000, 10_000),
    tombstones=(10, 100, 1000, 10_000),
    disk=4000,
)
ALL = replace(
    FULL,
    name="all",
    cells=tuple(
        (items, latency) for items in (1000, 10_000, 100_000) for latency in (0.0, 20.0, 200.0)
    ),
)
"""`FULL` with further cells, which take almost a minute each."""
QUICK = replace(
    FULL,
    name="quick",
    calls=((100, 20), (10_000, 40)),
    lengths=(100, 1000, 10_000),
    rounds=30,
    concurrent=200,
    cells=((1000, 20.0), (2000, 20.0)),
    sample=20,
    busy=(2000, 2),
    events=20,
    idle=(1, 100),
    sessions=(1, 10, 100),
    writers=(1, 10, 100),
    written=1000,
    pending=(10, 100, 1000),
    tombstones=(10, 100, 1000),
    disk=2000,
)
SMOKE = replace(
    QUICK,
    name="smoke",
    calls=((60, 1),),
    lengths=(30, 60),
    rounds=2,
    concurrent=10,
    concurrent_rounds=1,
    cells=((250, 0.0), (300, 1.0)),
    sample=2,
    busy=(100, 1),
    events=2,
    fan_out=20,
    idle=(1, 3),
    hours=1,
    sessions=(1, 3),
    writers=(1, 3),
    written=30,
    pending=(3, 9),
    tombstones=(3, 9),
    disk=60,
)
"""Tiny sizes to test the benchmark itself; the figures mean nothing."""
