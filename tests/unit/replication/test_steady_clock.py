"""The clock of pauses, claims and gaps."""

from __future__ import annotations

import pytest

from cached_session.replication.steady_clock import SteadyClock
from tests.unit.replication.fakes import Clock


def test_it_follows_the_wall_clock() -> None:
    """Also where that is set forward."""
    clock = Clock()
    steady = SteadyClock(clock.runtime())
    clock.advance(3)
    assert steady.now_ms() == clock.wall
    clock.wall += 10**9
    assert steady.now_ms() == clock.wall


@pytest.mark.parametrize("moved_ms", [0, 10_000, 10**9])
def test_it_goes_on_where_the_wall_clock_does_not(moved_ms: int) -> None:
    """A wall clock that stands still or goes back does not delay the end of a pause."""
    clock = Clock()
    steady = SteadyClock(clock.runtime())
    before = steady.now_ms()
    clock.wall -= moved_ms
    clock.moment += 2.5
    assert steady.now_ms() == before + 2500
    clock.moment += 2.5
    assert steady.now_ms() == before + 5000
