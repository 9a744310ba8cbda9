"""Stamps: a hybrid logical clock in one sortable integer, and the rule that starts a run.

A stamp is 48 bits of milliseconds and 16 bits of logic. It only ever has to be larger than every
stamp that its writer had seen; a wall clock that lies costs readability, never order.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LAST_WALL_STAMP", "MAX_STAMP", "Run", "next_run", "stamp_ms"]

LOGIC_BITS = 16
LAST_WALL_STAMP = 1 << 60
"""What a writer takes from its wall clock at most (the year 2527). However wrong the clocks of
honest devices are, the room above is for more runs than anybody will ever write."""
MAX_STAMP = (1 << 62) - 1
"""The largest stamp that is believed: SQLite's integers end at 2**63, and a peer must not be able
to push the clock over that edge. Only a forged operation comes here; order then falls to the
writer id."""


@dataclass(frozen=True)
class Run:
    """A stretch of one writer's operations that all carry the stamp of its start."""

    stamp: int
    continued: bool


def stamp_ms(stamp: int) -> int:
    """The wall-clock milliseconds within a stamp."""
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
    """The run that an operation written now belongs to.

    Args:
        now_ms: the wall clock; anything below zero counts as zero.
        highest_seen: the largest stamp the journal holds for this session.
        current: the stamp of this writer's run so far, None at its first operation.
        last_was_mine: whether this writer wrote the operation applied last in this session.
        last_ms: the wall clock at this writer's last operation.
        gap_ms: the pause that ends a run. A clock that jumped back is no pause.
    """
    if current is not None and last_was_mine and now_ms - last_ms <= gap_ms:
        return Run(current, continued=True)
    wall = min(max(now_ms, 0) << LOGIC_BITS, LAST_WALL_STAMP)
    return Run(min(max(wall, highest_seen + 1), MAX_STAMP), continued=False)
