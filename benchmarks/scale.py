"""How much of everything is measured."""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["FULL", "QUICK", "SMOKE", "Scale"]


@dataclass(frozen=True)
class Scale:
    """Sizes and rounds of each part."""

    name: str
    calls: tuple[tuple[int, int], ...]
    """(length of the history, rounds): every arm, interleaved."""
    lengths: tuple[int, ...]
    """Histories of ours alone, for growth and memory."""
    rounds: int
    """Calls of each kind at each size, where growth is measured."""
    concurrent: int
    """Sessions that write at once, ..."""
    concurrent_rounds: int
    """... and how often they do."""
    cells: tuple[tuple[int, float], ...]
    """(items, added latency in ms): push, hydration and reconnect."""
    sample: int
    """Items stored one by one in each of those."""
    busy: tuple[int, int]
    """(items of a backlog, rounds): reads while it is pushed."""
    events: int
    """Words that one device waits for from another."""
    told: int
    """Items that a server tells to listeners."""
    idle: tuple[int, ...]
    """Open sessions of a cache to which nothing happens."""
    hours: int
    """Simulated hours of that."""
    sessions: tuple[int, ...]
    """Sessions in one journal."""
    writers: tuple[int, ...]
    """Writers of one history ..."""
    written: int
    """... of so many operations."""
    pending: tuple[int, ...]
    """Operations that wait for the server."""
    tombstones: tuple[int, ...]
    """Popped items."""
    disk: int
    """Items of the journal whose size is looked at."""


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
    told=1000,
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
"""The cells that take most of a minute each, too."""
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
    told=20,
    idle=(1, 3),
    hours=1,
    sessions=(1, 3),
    writers=(1, 3),
    written=30,
    pending=(3, 9),
    tombstones=(3, 9),
    disk=60,
)
"""Enough to see that everything still runs; its figures say nothing."""
