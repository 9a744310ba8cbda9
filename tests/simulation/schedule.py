"""The steps of a seed, as a plain list that can be shortened when the seed fails."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

from tests.simulation.contests import contested_items, crowded_second
from tests.simulation.plan import Plan, Schedule, Step, options

__all__ = ["Plan", "Schedule", "Step", "make"]

ACTIONS = {
    "add": 45,
    "pop": 10,
    "clear": 4,
    "read": 14,
    "sync": 5,
    "flush": 1,
    "audit": 2,
    "reopen": 4,
    "mark": 6,
}
CLOCKS = ("forward", "back", "epoch", "freeze", "true")


def make(seed: int) -> Schedule:
    """Make the schedule of a seed.

    Each kind of fault is in some seeds and absent from others. One seed in five contains only
    confirmed pops, one in twenty many items in one second.
    """
    if seed % 5 == 4:
        return contested_items(seed)
    if seed % 20 == 12:
        return crowded_second(seed)
    random = Random(f"{seed}/schedule")

    def some(chance: float) -> bool:
        return random.random() < chance

    devices = random.choice((2, 2, 3, 3, 4))
    length = random.uniform(10, 80)
    confirmed = some(0.3)
    plan = Plan(
        devices=devices,
        processes=2 if some(0.2) else 1,
        sessions=2 if some(0.2) else 1,
        existing=random.choice(("replace", "replace", "refuse", "ignore")),
        confirmed=confirmed,
        poison=some(0.12),
        skews=tuple(
            random.choice((0.0, 0.0, 1.5, -40.0, 3e5, -1e9)) if some(0.4) else 0.0
            for _ in range(devices)
        ),
        private=tuple(who for who in range(devices) if some(0.1)),
        options=options(random),
        overlap=random.choice((20, 3, 1)),
        ground=random.choice((300, 6, 6)),
        short=random.choice((256, 4)),
    )
    if some(0.2):
        # Two pages can show that they do not fit together only by rows that they share.
        plan = replace(plan, shuffles=True, overlap=20)
    # From separate generators: later additions leave the other seeds unchanged.
    formats = Random(f"{seed}/formats")
    if formats.random() < 0.3:
        old = tuple(who for who in range(devices) if formats.random() < 0.6)
        plan = replace(plan, old=old)
    hidden = Random(f"{seed}/hides")
    if hidden.random() < 0.12:
        # One device sees all: memories that no device lists are not found by an audit.
        hides = tuple(who for who in range(1, devices) if hidden.random() < 0.7)
        plan = replace(plan, hides=hides)
    steps: list[Step] = []
    births = dict.fromkeys(range(devices), 0.0)
    if some(0.15):
        births |= _copies(random, steps, births, length)
    if some(0.15):
        who = random.randrange(devices)
        taken = random.uniform(0, length * 0.6)
        steps.append(Step(taken, "backup", who))
        steps.append(Step(random.uniform(taken, length), "restore", who))
    _act(random, steps, births, length, plan)
    if confirmed:
        _contests(random, steps, births, length, plan)
    if some(0.6):
        _network_faults(random, steps, devices, length, plan)
    if some(0.4):
        for _ in range(random.randint(1, 4)):
            args = {"after": random.randint(0, 40), "down": random.uniform(0, 20)}
            who = random.choice(list(births))
            at = random.uniform(births[who], length)
            steps.append(Step(at, "crash", who, {**args, "which": random.randrange(2)}))
    if some(0.25):
        for _ in range(random.randint(1, 3)):
            who = random.choice(list(births))
            args = {"to": random.choice(CLOCKS), "by": random.choice((3.0, 100.0, 1e5, 3e7))}
            steps.append(Step(random.uniform(0, length), "clock", who, args))
    if plan.old:
        for who in plan.old:
            at = formats.uniform(length * 0.3, length)
            steps.append(Step(at, "reopen", who, {}))
    _rewrite(Random(f"{seed}/rewrites"), steps, births, length, plan)
    if plan.poison:
        _give_up(Random(f"{seed}/parked"), steps, births, length, plan)
    strange = Random(f"{seed}/strange")
    if strange.random() < 0.08:
        for _ in range(strange.randint(1, 4)):
            args = {"session": strange.randrange(plan.sessions)}
            steps.append(Step(strange.uniform(0, length), "nonsense", 0, args))
    past = Random(f"{seed}/past")
    if past.random() < 0.06:
        args = {"seconds": past.choice((3.0, 15.0, 60.0))}
        steps.append(Step(past.uniform(5.0, length), "rewind", 0, args))
    steps.sort(key=lambda step: step.at)
    return Schedule(seed, plan, tuple(steps))


def _rewrite(
    random: Random, steps: list[Step], births: dict[int, float], length: float, plan: Plan
) -> None:
    """Let a device replace items, as a compaction does. Some may be gone by then."""
    if random.random() >= 0.3:
        return
    for _ in range(random.randint(1, 5)):
        who = random.choice(list(births))
        args = {
            "places": [random.random() for _ in range(random.randint(1, 4))],
            "items": random.choice((0, 1, 2)),
            "after": random.choice((0.0, 0.0, 1.0)),
            "session": random.randrange(plan.sessions),
            "which": random.randrange(2),
        }
        steps.append(Step(random.uniform(births[who], length), "replace", who, args))


def _give_up(
    random: Random, steps: list[Step], births: dict[int, float], length: float, plan: Plan
) -> None:
    """Retry parked items while they are still refused, or drop them."""
    for _ in range(random.randint(0, 5)):
        who = random.choice(list(births))
        what = random.choice(("retry", "drop"))
        args = {"session": random.randrange(plan.sessions), "which": random.randrange(2)}
        steps.append(Step(random.uniform(births[who], length), what, who, args))


def _copies(
    random: Random, steps: list[Step], births: dict[int, float], length: float
) -> dict[int, float]:
    born = {}
    for number in range(random.randint(1, 2)):
        who, new = random.choice(list(births)), len(births) + number
        at = random.uniform(0, length * 0.7)
        steps.append(Step(at, random.choice(("copy_open", "copy_closed")), who, {"new": new}))
        born[new] = at + 0.5
    return born


def _act(
    random: Random, steps: list[Step], births: dict[int, float], length: float, plan: Plan
) -> None:
    names, weights = list(ACTIONS), list(ACTIONS.values())
    for _ in range(random.randint(6, 40)):
        who = random.choice(list(births))
        at = random.uniform(births[who], length)
        # Often several in a row, as in a conversation.
        for _ in range(random.choice((1, 1, 2, 3, 5))):
            what = random.choices(names, weights)[0]
            args: dict[str, Any] = {"session": random.randrange(plan.sessions)}
            if what == "add":
                args["items"] = random.choice((1, 1, 1, 2, 3, 4))
                if random.random() < 0.07:
                    args["size"] = random.choice((30_000, 60_000))
                if plan.poison and random.random() < 0.15:
                    args["poison"] = True
            if what == "pop" and plan.confirmed and random.random() < 0.6:
                args["confirmed"] = True
            if what == "mark":
                args["type"] = random.choice(("title", "unknown"))
                args["key"] = random.choice(("", "a"))
            if what == "read":
                args["limit"] = random.choice((None, None, 0, 1, 3, 10))
            if what in ("sync", "flush"):
                args["timeout"] = random.choice((0.1, 2.0, 30.0))
            if plan.processes > 1:
                args["which"] = random.randrange(plan.processes)
            steps.append(Step(at, what, who, args))
            at += random.choice((0.0, 0.01, 0.3, 2.0))


def _contests(
    random: Random, steps: list[Step], births: dict[int, float], length: float, plan: Plan
) -> None:
    """Give every device the same history and let all pop its last item at nearly the same time."""
    for _ in range(random.randint(1, 4)):
        at = random.uniform(0, length)
        session = random.randrange(plan.sessions)
        everyone = [who for who, born in births.items() if born <= at]
        items = {"items": random.randint(1, 4), "session": session}
        steps.append(Step(at, "add", random.choice(everyone), items))
        for pause in (0.5, 1.5):
            steps.extend(
                Step(at + pause, "sync", who, {"timeout": 2.0, "session": session})
                for who in everyone
            )
        at += random.choice((2.0, 3.0))
        if random.random() < 0.3:
            chances = {random.choice(("lose_answer", "lose_request", "slow", "error_after")): 0.5}
            steps.append(Step(at, "storm", 0, {"lasts": 2.0, "chances": chances}))
        for who in everyone:
            for _ in range(random.randint(1, 3)):
                args = {"confirmed": True, "session": session, "which": random.randrange(2)}
                steps.append(Step(at + random.choice((0.0, 0.0, 0.03, 0.1)), "pop", who, args))
            if random.random() < 0.15:
                args = {"after": random.randint(0, 12), "down": 1.0, "which": random.randrange(2)}
                steps.append(Step(at + 0.001, "crash", who, args))


def _network_faults(
    random: Random, steps: list[Step], devices: int, length: float, plan: Plan
) -> None:
    for _ in range(random.randint(1, 6)):
        at = random.uniform(0, length)
        lasts = random.choice((1.0, 8.0, 40.0)) * random.uniform(0.5, 1.5)
        kind = random.choice(KINDS)
        who = random.randrange(devices)
        if kind == "storm":
            wrong = random.choice(STORMS)
            chances = {name: random.choice((0.05, 0.2, 0.5)) for name in wrong}
            steps.append(Step(at, kind, 0, {"lasts": lasts, "chances": chances}))
        elif kind == "lag":
            behind = (1.0, 5.0, 30.0) if plan.ground > 30 else (1.0, 3.0)
            args = {"lasts": lasts, "seconds": random.choice(behind)}
            steps.append(Step(at, kind, 0, args))
        elif kind == "evict":
            if random.random() < 0.5:
                steps.append(Step(at, kind, 0, {"share": random.choice((0.1, 0.4, 1.0))}))
        else:
            steps.append(Step(at, kind, who, {"lasts": lasts}))


KINDS = ("cut", "cut", "cut", "storm", "storm", "storm", "down", "lag", "evict")
STORMS = (
    ("lose_request",),
    ("lose_answer",),
    ("lose_request", "lose_answer"),
    ("slow",),
    ("slow", "late"),
    ("duplicate",),
    ("duplicate", "slow", "late"),
    ("busy", "unavailable"),
    ("error_before", "error_after"),
    ("prefix",),
    ("drops",),
    ("drops", "lose_answer"),
    ("damage",),
    ("damage", "skips", "lose_answer"),
    ("skips",),
    ("skips", "damage"),
    ("prefix", "lose_answer", "slow"),
    ("lose_request", "lose_answer", "slow", "busy", "error_after", "prefix"),
)
