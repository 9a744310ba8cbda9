"""A confirmed pop whose process is killed at each step."""

from __future__ import annotations

import pytest

from tests.simulation.plan import Plan, Schedule, Step
from tests.simulation.simulation import run

QUICK = {
    "poll_interval": 0.5,
    "poll_interval_idle": 5.0,
    "request_timeout": 3.0,
    "backoff_max": 5.0,
    "hydrate_timeout": 0.5,
    "claim_patience": 2.0,
}
LAST = 32
"""Callbacks of a process within which an undisturbed confirmed pop has returned."""


def run_killed_claim(after: int, *, other: bool) -> tuple[list[str], int]:
    """Kill device 1 a number of callbacks after it began to pop the last of two items, which
    another device may pop too. Return the receivers and the number of items left."""
    steps = [
        Step(2.0, "add", 0, {"items": 1}),
        Step(2.1, "add", 0, {"items": 1}),
        *(Step(3.0, "sync", who, {"timeout": 2.0}) for who in (0, 1)),
        Step(5.0, "pop", 1, {"confirmed": True}),
        Step(5.0, "crash", 1, {"after": after, "down": 1.0, "which": 0}),
        *([Step(5.2, "pop", 0, {"confirmed": True})] if other else []),
        Step(30.0, "read", 0),
    ]
    outcome = run(Schedule(1, Plan(devices=2, confirmed=True, options=QUICK), tuple(steps)))
    history = outcome.history
    assert outcome.error is None, "\n".join([*history[-100:], outcome.error])
    given = [line.split()[1] for line in history if " confirmed " in line and "that" not in line]
    read = next(line for line in history if " d0/1 read " in line)
    return given, int(read.rsplit(" ", 1)[1])


@pytest.mark.slow
def test_a_claim_of_a_killed_process_is_resolved() -> None:
    """Wherever a confirmed pop is cut off, the next opening of the journal resolves it, and all
    devices agree: the item is visible as before, popped without a receiver, or popped for its one
    receiver."""
    found = {
        (len(given), left)
        for given, left in (run_killed_claim(n, other=False) for n in range(LAST))
    }
    assert found == {(0, 2), (0, 1), (1, 1)}


@pytest.mark.slow
def test_a_contested_claim_of_a_killed_process_is_resolved() -> None:
    """The same holds when another device pops the item too: no device waits for the killed process
    forever, and no item is given twice."""
    found = [run_killed_claim(n, other=True) for n in range(LAST)]
    assert all(len(given) == len(set(given)) for given, _ in found)
    assert {len(given) for given, _ in found} >= {1, 2}
    assert {left for _, left in found} <= {0, 1}
