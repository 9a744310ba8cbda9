"""Find the shortest schedule that still fails: leave out halves of the steps, quarters, then single
ones."""

from __future__ import annotations

import time
from collections.abc import Callable

from tests.simulation.schedule import Schedule, Step

__all__ = ["shrink"]


def shrink(
    schedule: Schedule, fails: Callable[[Schedule], bool], *, seconds: float = 60.0
) -> Schedule:
    """Shorten a failing schedule by delta debugging, with a limit on real time. The result fails as
    well."""
    until = time.monotonic() + seconds
    steps: list[Step] = list(schedule.steps)
    size = max(1, len(steps) // 2)
    while True:
        start = 0
        left_out = False
        while start < len(steps):
            if time.monotonic() > until:
                return schedule.keep(steps)
            fewer = steps[:start] + steps[start + size :]
            if fails(schedule.keep(fewer)):
                steps, left_out = fewer, True
            else:
                start += size
        if size == 1 and not left_out:
            return schedule.keep(steps)
        size = max(1, size // 2)
