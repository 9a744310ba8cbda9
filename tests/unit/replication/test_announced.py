"""When a memory that an event has named is fetched, by a clock that is a number."""

from __future__ import annotations

import math

import pytest

from cached_session.replication import announced
from cached_session.replication.announced import DELAYS, Announced


def test_a_named_memory_is_due_at_once_and_again_after_growing_delays() -> None:
    """Until the last attempt; then the memory is given up."""
    made, now, delays = Announced(), 100.0, []
    assert made.add("s", "m", now)
    assert made.due(now, besides=()) == (["s"], math.inf)
    while True:
        assert made.take("s") == ["m"]
        assert made.due(now, besides=())[0] == []
        if made.retry("s", ["m"], now):
            break
        nearest = made.due(now, besides=())[1]
        delays.append(round(nearest - now, 6))
        now = nearest
    assert delays == list(DELAYS)
    assert not made.is_waiting("s")


def test_a_memory_that_arrives_does_not_wait_any_more() -> None:
    """The others of its session do."""
    made = Announced()
    made.add("s", "m1", 0.0)
    made.add("s", "m2", 0.0)
    made.take("s")
    made.arrived("s", ["m1"])
    assert made.is_waiting("s")
    assert made.retry("s", ["m1", "m2"], 0.0) == []
    assert made.take("s") == ["m2"]
    made.arrived("s", ["m2"])
    assert not made.is_waiting("s")


def test_a_second_event_does_not_start_the_attempts_again() -> None:
    """A server may repeat an event without end."""
    made = Announced()
    for number in range(len(DELAYS)):
        assert made.add("s", "m", float(number))
        made.take("s")
        assert made.retry("s", ["m"], float(number)) == []
    assert made.retry("s", ["m"], 100.0) == ["m"]


def test_a_flood_of_events_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Listings fetch what is above the bound."""
    monkeypatch.setattr(announced, "MOST_WAITING", 2)
    made = Announced()
    assert made.add("s", "m1", 0.0)
    assert made.add("s", "m2", 0.0)
    assert not made.add("s", "m3", 0.0)
    assert made.add("s", "m1", 0.0)
    assert made.take("s") == ["m1", "m2"]


def test_a_paused_session_waits_without_an_attempt() -> None:
    """One that is fetched, or closed, is not due."""
    made = Announced()
    made.add("s", "m", 0.0)
    made.put_off("s", 9.0)
    assert made.due(0.0, besides=()) == ([], 9.0)
    assert made.due(9.0, besides={"s"}) == ([], math.inf)
    assert made.due(9.0, besides=()) == (["s"], math.inf)
    made.forget("s")
    assert made.due(9.0, besides=()) == ([], math.inf)
    assert made.take("s") == []
    assert made.retry("s", ["m"], 9.0) == []
