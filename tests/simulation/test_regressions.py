"""Errors that the simulation has found and that are fixed, as the shortest schedules that showed
them."""

import pytest

from tests.simulation.schedule import Plan, Schedule, Step
from tests.simulation.simulation import run

QUICK = {
    "poll_interval": 0.5,
    "poll_interval_idle": 5.0,
    "request_timeout": 3.0,
    "backoff_max": 5.0,
    "hydrate_timeout": 0.5,
}

FOUND = {
    # Pauses were counted by the wall clock alone: one never ended.
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
    # A page of the device's own memories, just sent, counted as known from an earlier pull.
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
    # The age of a claim was counted by the wall clock.
    "a claim of another process is alive though the clock stands still": Schedule(
        seed=500407,
        plan=Plan(
            devices=2,
            processes=2,
            sessions=1,
            existing="replace",
            shuffles=False,
            confirmed=True,
            poison=True,
            picky=False,
            skews=(0.0, 0.0),
            private=(),
            old=(),
            options={
                "push_delay": 0.0,
                "poll_interval": 5.0,
                "poll_interval_idle": 5.0,
                "watch_interval": 0.5,
                "request_timeout": 10.0,
                "backoff_max": 5.0,
                "hydrate_timeout": 2.0,
                "run_gap": 600.0,
                "max_batch_memories": 3,
                "max_batch_bytes": 524288,
                "page_size": 30,
                "first_page_size": 30,
                "parallel_requests": 1,
                "parallel_sessions": 4,
                "prune_interval": 7.0,
                "audit_interval": 0.0,
            },
            overlap=3,
            ground=6,
            short=256,
        ),
        steps=(
            Step(
                at=7.7330854655919685,
                what="add",
                who=0,
                args={"session": 0, "items": 1, "poison": True, "which": 1},
            ),
            Step(at=15.309961878130585, what="clock", who=0, args={"to": "freeze", "by": 100000.0}),
            Step(at=15.668579964809025, what="reopen", who=1, args={"session": 0, "which": 1}),
            Step(
                at=24.69919789401673, what="add", who=1, args={"session": 0, "items": 3, "which": 1}
            ),
            Step(at=26.335178883180042, what="add", who=0, args={"items": 2, "session": 0}),
            Step(at=26.835178883180042, what="sync", who=1, args={"timeout": 2.0, "session": 0}),
            Step(at=27.835178883180042, what="sync", who=0, args={"timeout": 2.0, "session": 0}),
            Step(
                at=35.858143992547056,
                what="pop",
                who=0,
                args={"confirmed": True, "session": 0, "which": 1},
            ),
            Step(
                at=35.858143992547056,
                what="pop",
                who=0,
                args={"confirmed": True, "session": 0, "which": 0},
            ),
            Step(
                at=35.858143992547056,
                what="pop",
                who=1,
                args={"confirmed": True, "session": 0, "which": 0},
            ),
            Step(
                at=35.88814399254706,
                what="pop",
                who=1,
                args={"confirmed": True, "session": 0, "which": 1},
            ),
        ),
    ),
    # An own operation that a clear covers had been pruned. A lagging replica listed it once more,
    # after an operation of another device, and later items continued the run from before that
    # operation.
    "what is said after news stands behind them, whatever comes with them": Schedule(
        600146,
        Plan(
            devices=3,
            skews=(0.0, 300_000.0, 0.0),
            options={
                **QUICK,
                "push_delay": 0.0,
                "poll_interval": 5.0,
                "first_page_size": 5,
                "page_size": 5,
                "max_batch_memories": 1,
                "prune_interval": 7.0,
            },
        ),
        (
            Step(13.0, "lag", 0, {"lasts": 50.0, "seconds": 5.0}),
            Step(15.9, "add", 2, {"items": 1}),
            Step(19.3, "add", 2, {"items": 3}),
            Step(19.3, "add", 2, {"items": 4}),
            Step(20.3, "add", 1, {"items": 2}),
            Step(20.8, "clear", 2),
            Step(20.81, "sync", 2, {"timeout": 2.0}),
            Step(21.8, "sync", 2, {"timeout": 2.0}),
            Step(23.3, "add", 2, {"items": 4}),
        ),
    ),
    # Its row was looked up through the row of the operation, which was gone.
    "a claim of what is given up meanwhile is settled": Schedule(
        114,
        Plan(
            devices=3,
            existing="ignore",
            confirmed=True,
            poison=True,
            picky=True,
            options={
                **QUICK,
                "push_delay": 0.0,
                "poll_interval": 5.0,
                "poll_interval_idle": 20.0,
                "request_timeout": 10.0,
                "max_batch_memories": 1,
                "claim_patience": 0.0,
            },
        ),
        (
            Step(2.1, "add", 2, {"items": 1, "poison": False}),
            Step(24.0, "deaf", 2, {"lasts": 1.2}),
            Step(24.1, "add", 2, {"items": 2, "poison": True}),
            Step(24.7, "picky", 0, {"lasts": 9.0}),
            Step(25.5, "sync", 0, {"timeout": 2.0}),
            Step(28.4, "pop", 2, {"confirmed": True}),
            Step(28.401, "crash", 2, {"after": 7, "down": 1.0, "which": 0}),
            Step(42.1, "drop", 2),
        ),
    ),
}


@pytest.mark.parametrize("name", FOUND)
def test_schedules_that_once_failed_converge(name: str) -> None:
    """Each schedule that once failed ends in one history."""
    outcome = run(FOUND[name])
    assert outcome.error is None, "\n".join([*outcome.history[-200:], outcome.error or ""])
