"""Schedules that bring about on purpose what chance hardly ever does.

Confirmed pops of an item that is stored once more: its writer has not heard that the server has it,
the server refuses it when it is sent again, an audit puts it back. And many words in one second,
while the server lists a second in another order each time.
"""

from __future__ import annotations

from random import Random
from typing import Any

from tests.simulation.plan import Plan, Schedule, Step, options

__all__ = ["contested", "crowded"]

ROUNDS = ("unheard", "unheard", "refused", "refused", "audited", "lost", "plain")


def contested(seed: int) -> Schedule:
    """Several devices want the same item, of which not all of them know the same."""
    random = Random(f"{seed}/contested")
    plan = Plan(
        devices=random.choice((2, 2, 3)),
        existing=random.choice(("replace", "replace", "refuse", "ignore")),
        confirmed=True,
        poison=True,
        picky=True,
        options={
            **options(random),
            "push_delay": random.choice((0.0, 0.2)),
            "backoff_max": 5.0,
            "hole_patience": random.choice((3.0, 600.0)),
            "claim_patience": random.choice((0.0, 2.0, 10.0)),
        },
    )
    steps: list[Step] = []
    at = 2.0
    for _ in range(random.randint(2, 4)):
        at = _round(random, steps, at, plan.devices)
    # What is parked is given up, although the server may hold it: an earlier answer was lost.
    given_up = Random(f"{seed}/given up")
    if given_up.random() < 0.4:
        for _ in range(given_up.randint(1, 3)):
            who = given_up.randrange(plan.devices)
            steps.append(Step(given_up.uniform(5.0, at), "drop", who, {}))
    steps.sort(key=lambda step: step.at)
    return Schedule(seed, plan, tuple(steps))


def _round(random: Random, steps: list[Step], at: float, devices: int) -> float:
    """One item and those that want it; when the next round may begin."""
    what = random.choice(ROUNDS)
    owner = random.randrange(devices)
    others = [who for who in range(devices) if who != owner]
    first = random.choice(others)

    def do(when: float, name: str, who: int = 0, **more: Any) -> None:
        steps.append(Step(at + when, name, who, more))

    def pop(when: float, who: int) -> None:
        do(when, "pop", who, confirmed=True)
        if random.random() < 0.1:
            do(when + 0.001, "crash", who, after=random.randint(0, 12), down=1.0, which=0)

    if what in ("unheard", "refused"):
        do(0.0, "deaf", owner, lasts=1.2 if what == "refused" else random.choice((2.8, 3.2, 3.6)))
    do(0.1, "add", owner, items=random.choice((1, 1, 2)), poison=what == "refused")
    for who in others:
        for when in (0.8, 1.5):
            do(when, "sync", who, timeout=2.0)
    if what == "refused":
        do(0.7, "picky", lasts=9.0)
        for when in (1.4, 2.2):
            do(when, "sync", owner, timeout=2.0)
    if what == "lost":
        do(2.5, "evict", newest=True)
    if random.random() < 0.4:
        do(random.choice((1.8, 3.0)), "lag", lasts=5.0, seconds=random.choice((2.0, 5.0, 30.0)))
    contest = 3.3
    pop(contest, first)
    behind = random.choice((0.0, 0.1, 0.3, 0.5, 0.8))
    if what == "refused" and random.random() < 0.5:
        do(contest + behind, "retry", owner)
    if what == "audited":
        do(contest + random.uniform(0.15, 0.6), "cut", first, lasts=4.0)
        do(contest + 0.8, "audit", owner)
        behind += 1.2
    for again in (0.0, *(1.0 for _ in range(random.randint(0, 1)))):
        pop(contest + behind + again, owner)
    return at + random.choice((8.0, 11.0))


def crowded(seed: int) -> Schedule:
    """Everybody speaks in one second, which the server lists in another order each time; what is
    said later lies above it. Whoever comes then passes through that second once: what slips
    through between two pages, and is somebody's last word, leaves no gap."""
    random = Random(f"{seed}/crowded")
    devices = random.choice((3, 4))
    plan = Plan(
        devices=devices,
        processes=2,
        shuffles=True,
        ground=6,
        options={
            **options(random),
            "push_delay": random.choice((0.0, 0.02)),
            "poll_interval": 5.0,
            "max_batch_memories": 1000,
            "page_size": random.choice((5, 5, 22)),
            "first_page_size": 5,
        },
    )
    steps: list[Step] = []
    at = 2.0
    for who in range(devices):
        for which in range(2 if who == 0 else 1):
            steps.extend(
                Step(at, "add", who, {"items": items, "which": which})
                for items in (*random.choices((1, 2, 4), k=random.randint(2, 4)), 1)
            )
    at += random.uniform(9.0, 14.0)
    for _ in range(random.randint(3, 5)):
        steps.append(Step(at, "add", random.randrange(devices), {"items": random.choice((2, 3))}))
        at += random.uniform(1.0, 2.5)
    return Schedule(seed, plan, tuple(steps))
