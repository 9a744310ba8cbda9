"""Stamps, the first part of the sort key: a hybrid logical clock, and the rule that starts a run.

A stamp has 48 bits of milliseconds and a logical counter of 16 bits. The stamp of a new run is
greater than every stamp of the session in the writer's journal. A wrong wall clock therefore
affects the displayed times, but not the order.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LAST_WALL_STAMP", "MAX_STAMP", "Run", "next_run", "stamp_ms"]

LOGIC_BITS = 16
LAST_WALL_STAMP = 1 << 60
"""Highest stamp that is taken from a wall clock (the year 2527). If a clock has reached it, later
runs get stamps from the range above it, which holds more runs than any session will ever have."""
MAX_STAMP = (1 << 62) - 1
"""Largest stamp that a replica accepts. SQLite's integers end at 2**63, and a peer must not be able
to advance the clock past that end. Only a forged operation reaches this stamp; runs that share it
are ordered by writer id."""


@dataclass(frozen=True)
class Run:
    """Consecutive operations of one writer that share the stamp of the first operation."""

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
    turn_stamp: int = 0,
) -> Run:
    """Return the run of an operation that is written now.

    Args:
        now_ms: the wall clock in milliseconds. A negative value counts as zero.
        highest_seen: the largest stamp of this session in the journal.
        current: the stamp of this writer's current run; None for its first operation.
        last_was_mine: True if this writer wrote the operation applied last in this session.
        last_ms: the wall clock at this writer's last operation, in milliseconds.
        gap_ms: maximum milliseconds between two operations of a run. A longer time starts a new
            run. A clock that jumped back does not start a new run.
        turn_stamp: the stamp of the turn that the operation joins; 0 if it opens one. The stamp of
            the operation is not below it, even if a damaged journal has lost the turn's head.
    """
    is_near = last_was_mine and now_ms - last_ms <= gap_ms
    if current is not None and is_near and current >= turn_stamp:
        return Run(current, continued=True)
    wall = min(max(now_ms, 0) << LOGIC_BITS, LAST_WALL_STAMP)
    highest = max(highest_seen, turn_stamp)
    return Run(min(max(wall, highest + 1), MAX_STAMP), continued=False)
