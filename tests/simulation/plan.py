"""The parts of a schedule: settings of the whole run, and steps that are plain data."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

__all__ = ["Plan", "Schedule", "Step", "options"]


@dataclass(frozen=True)
class Step:
    """An event at a simulated second."""

    at: float
    what: str
    who: int = 0
    """The number of the device."""
    args: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        more = " ".join(f"{name}={value}" for name, value in self.args.items())
        return f"{self.at:8.2f} device {self.who}: {self.what} {more}".rstrip()


@dataclass(frozen=True)
class Plan:
    """The settings of a run."""

    devices: int = 2
    processes: int = 1
    """Of device 0 on its one journal. The others have one process each."""
    sessions: int = 1
    existing: str = "replace"
    """The answer of the server to an id that exists."""
    shuffles: bool = False
    """Whether the server lists the memories of one second in another order each time."""
    confirmed: bool = False
    """Whether some pops are confirmed ones."""
    poison: bool = False
    """Whether the server refuses some items permanently, until the faults end."""
    picky: bool = False
    """Whether it refuses those only at times, so that it may hold an item that it refuses."""
    hides: tuple[int, ...] = ()
    """Devices whose listings omit some memories that can be fetched by id."""
    skews: tuple[float, ...] = ()
    """Seconds by which the clock of each device is wrong."""
    private: tuple[int, ...] = ()
    """Devices that keep their text out of the server's index."""
    old: tuple[int, ...] = ()
    """Devices that begin with a journal of format 1, and get one once more when they reopen."""
    options: dict[str, Any] = field(default_factory=dict)
    overlap: int = 20
    """Rows that adjacent listing pages share."""
    ground: int = 300
    """Seconds that a pull reads below known rows. More than a replica lags."""
    short: int = 512
    """Items up to which a history is read in one query."""


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
    """Return settings that make faults frequent, chosen by the seed."""
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
        "audit_interval": 0.0,  # Lost memories must not be restored without the oracle's knowledge.
    }
