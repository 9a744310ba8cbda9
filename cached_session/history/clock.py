"""Stamps: a hybrid logical clock in one sortable integer, and the rule that starts a run.

A stamp holds 48 bits of milliseconds and a logical counter of 16 bits. A new run gets a stamp above
every stamp that its writer has seen. A wrong wall clock therefore makes the times that people read
wrong, but not the order.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LAST_WALL_STAMP", "MAX_STAMP", "Run", "next_run", "stamp_ms"]

LOGIC_BITS = 16
LAST_WALL_STAMP = 1 << 60
"""Upper limit of a stamp that comes from a wall clock (the year 2527). The range above it stays
free for the runs that follow after a clock has reached it: more than any session will ever have."""
MAX_STAMP = (1 << 62) - 1
"""The largest stamp that a replica accepts. SQLite's integers end at 2**63, and a peer must not be
able to push the clock past them. Only a forged operation reaches this stamp; runs that share it are
ordered by writer id."""


@dataclass(frozen=True)
class Run:
    """Consecutive operations of one writer that share the stamp of the first one."""

    stamp: int
    continued: bool


def stamp_ms(stamp: int) -> int:
    """Return the wall-clock milliseconds of a stamp."""
    return stamp >> LOGIC_BITS


def next_run(
    *,
    now_ms: int,
    highest_seen: int,
    current: int | None,
    last_was_mine: bool,
    last_ms: int,
    gap_ms: int,
) -> Run:
    """Return the run of an operation that is written now.

    Args:
        now_ms: the wall clock. A negative value counts as zero.
        highest_seen: the largest stamp that the journal holds for this session.
        current: the stamp of this writer's current run; None for its first operation.
        last_was_mine: True if this writer wrote the operation applied last in this session.
        last_ms: the wall clock at this writer's last operation.
        gap_ms: a longer time between two operations starts a new run. A clock that jumped back does
            not start one.
    """
    if current is not None and last_was_mine and now_ms - last_ms <= gap_ms:
        return Run(current, continued=True)
    wall = min(max(now_ms, 0) << LOGIC_BITS, LAST_WALL_STAMP)
    return Run(min(max(wall, highest_seen + 1), MAX_STAMP), continued=False)
