"""What the simulation has found and what is mended: the shortest schedules that showed it."""

import pytest

from .schedule import Plan, Schedule, Step
from .simulation import run

QUICK = {
    "poll_interval": 0.5,
    "poll_interval_idle": 5.0,
    "request_timeout": 3.0,
    "backoff_max": 5.0,
    "hydrate_timeout": 0.5,
}

FOUND = {
    # Pauses were counted by the wall clock alone: one that never comes to their end.
    "a device whose clock stands still sends again after a failure": Schedule(
        66,
        Plan(devices=2, options=QUICK),
        (
            Step(2.0, "cut", 1, {"lasts": 11.0}),
            Step(2.5, "clock", 1, {"to": "freeze", "by": 0.0}),
            Step(3.0, "add", 1, {"items": 1}),
        ),
    ),
    # Then by the monotonic clock as well, but from the opening: far behind a clock that had jumped.
    "a device whose clock jumped ahead and then stood still pulls again": Schedule(
        5,
        Plan(devices=2, options=QUICK),
        (
            Step(0.5, "clock", 1, {"to": "forward", "by": 100_000.0}),
            Step(4.6, "clock", 1, {"to": "freeze", "by": 0.0}),
            Step(7.9, "add", 0, {"items": 2}),
            Step(8.3, "add", 1, {"items": 3}),
            Step(8.8, "down", 0, {"lasts": 6.0}),
        ),
    ),
    # An audit looked for the first part only.
    "a late part of a removed item is forgotten": Schedule(
        0,
        Plan(devices=2, options={**QUICK, "max_batch_bytes": 20_000}),
        (
            Step(2.0, "storm", 0, {"lasts": 3.0, "chances": {"duplicate": 0.5}}),
            Step(2.1, "add", 0, {"items": 1, "size": 60_000}),
            Step(5.5, "pop", 0),
        ),
    ),
    # A page of one's own memories, just sent, was taken for ground that an earlier pull had known.
    "what others sent during a partition is found below one's own": Schedule(
        1,
        Plan(devices=2, options={"poll_interval": 20.0, "first_page_size": 5}, ground=6),
        (
            Step(2.0, "cut", 0, {"lasts": 8.0}),
            Step(3.0, "add", 1, {"items": 2}),
            Step(4.0, "add", 0, {"items": 4}),
            Step(4.1, "add", 0, {"items": 4}),
        ),
    ),
}


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_once(name: str) -> None:
    """The schedule that failed ends in one history."""
    outcome = run(FOUND[name])
    assert outcome.error is None, "\n".join([*outcome.history[-200:], outcome.error or ""])
