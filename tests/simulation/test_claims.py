"""A confirmed pop, step by step: its process dies at each of them."""

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
"""Callbacks of a process within which a confirmed pop that nothing disturbs has returned."""


def dies(after: int, *, other: bool) -> tuple[list[str], int]:
    """Device 1 dies so many callbacks after it began to pop the last of two items, which perhaps
    another device wants too: who was given something, and how many items are left."""
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
def test_a_claim_whose_process_dies_at_any_step_is_settled() -> None:
    """Wherever a confirmed pop is cut off, the next opening of the journal settles it, and all show
    the same: the item visible as before, popped for nobody, or popped for the one who got it."""
    found = {(len(given), left) for given, left in (dies(n, other=False) for n in range(LAST))}
    assert found == {(0, 2), (0, 1), (1, 1)}


@pytest.mark.slow
def test_a_contested_claim_whose_process_dies_at_any_step_is_settled() -> None:
    """The same where another device wants the item meanwhile: nobody waits for the dead for ever,
    and nothing goes to both."""
    found = [dies(n, other=True) for n in range(LAST)]
    assert all(len(given) == len(set(given)) for given, _ in found)
    assert {len(given) for given, _ in found} >= {1, 2}
    assert {left for _, left in found} <= {0, 1}
