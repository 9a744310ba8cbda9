"""What a schedule is made of: settings of the whole run, and steps that are plain data."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

__all__ = ["Plan", "Schedule", "Step", "options"]


@dataclass(frozen=True)
class Step:
    """One thing that happens at a simulated second."""

    at: float
    what: str
    who: int = 0
    """The device."""
    args: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        more = " ".join(f"{name}={value}" for name, value in self.args.items())
        return f"{self.at:8.2f} device {self.who}: {self.what} {more}".rstrip()


@dataclass(frozen=True)
class Plan:
    """What holds for a whole run."""

    devices: int = 2
    processes: int = 1
    """Of device 0 on its one journal; the others have one."""
    sessions: int = 1
    existing: str = "replace"
    """What the server does with an id that exists."""
    shuffles: bool = False
    """Whether the server lists the memories of one second in another order each time."""
    confirmed: bool = False
    """Whether some pops ask the server first."""
    poison: bool = False
    """Whether the server refuses some items for good, until the faults end."""
    picky: bool = False
    """Whether it takes them at first, and refuses them only now and then: it may hold what it
    refuses."""
    hides: tuple[int, ...] = ()
    """Devices to which the listing never shows some memories that can be had by id."""
    skews: tuple[float, ...] = ()
    """By how many seconds the clock of each device is off."""
    private: tuple[int, ...] = ()
    """Devices that keep their text out of the server's index."""
    old: tuple[int, ...] = ()
    """Devices that begin with a journal of format 1, and have one once more when they reopen."""
    options: dict[str, Any] = field(default_factory=dict)
    overlap: int = 20
    """Rows that neighbouring listing pages share."""
    ground: int = 300
    """Seconds that a pull goes below known ground; more than a replica lags."""
    short: int = 512
    """Items up to which a history is read in one go."""


@dataclass(frozen=True)
class Schedule:
    """Everything that one seed decides."""

    seed: int
    plan: Plan
    steps: tuple[Step, ...]

    def keep(self, steps: list[Step]) -> Schedule:
        return replace(self, steps=tuple(steps))

    def __str__(self) -> str:
        lines = [f"seed {self.seed}: {self.plan}"]
        return "\n".join(lines + [f"  {step}" for step in self.steps])


def options(random: Random) -> dict[str, Any]:
    """Tuning that makes trouble frequent, some of it."""
    return {
        "push_delay": random.choice((0.0, 0.02, 0.2)),
        "poll_interval": random.choice((0.5, 2.0, 5.0)),
        "poll_interval_idle": random.choice((5.0, 20.0)),
        "watch_interval": random.choice((0.5, 1.0)),
        "request_timeout": random.choice((3.0, 10.0)),
        "backoff_max": random.choice((5.0, 15.0)),
        "hydrate_timeout": random.choice((0.5, 2.0)),
        "run_gap": random.choice((600.0, 600.0, 10.0)),
        "max_batch_memories": random.choice((1, 2, 3, 10, 1000)),
        "max_batch_bytes": random.choice((20_000, 512 * 1024)),
        "page_size": random.choice((5, 22, 30, 100)),
        "first_page_size": random.choice((5, 22, 30, 100)),
        "parallel_requests": random.choice((1, 4)),
        "parallel_sessions": random.choice((1, 4)),
        "prune_interval": 7.0,
        "audit_interval": 0.0,  # what is lost must not be put back behind the oracle's back
    }
