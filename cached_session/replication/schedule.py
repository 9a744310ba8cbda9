"""Which session is pushed or pulled now, and when the next one is. Pure: told what has happened,
and what time it is (monotonic seconds)."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from cached_session.history.ids import agent_id
from cached_session.options import SyncOptions
from cached_session.replication.results import PullResult

__all__ = ["Plan", "PullSchedule", "PushSchedule"]

LEFT_MOST = 10_000
"""Sessions that nobody has open whose plan is remembered."""
GROWTH = 1.5
"""Each pull that brings nothing makes the next one this much later."""


class PushSchedule:
    """When each session is pushed again: at once, where nothing is said."""

    def __init__(self) -> None:
        self._due: dict[str, float] = {}

    def due(
        self, waiting: Sequence[str], now: float, *, besides: Collection[str]
    ) -> tuple[list[str], float]:
        """Which of the sessions with something unsent are pushed now, and when the next one is.
        ``besides``: those under way."""
        self._due = {name: self._due[name] for name in waiting if name in self._due}
        idle = {name: self._due.get(name, -math.inf) for name in waiting if name not in besides}
        nearest = min((due for due in idle.values() if due > now), default=math.inf)
        return [name for name, due in idle.items() if due <= now], nearest

    def put_off(self, session_id: str, until: float) -> None:
        """Not before then; infinity: not before something is written."""
        self._due[session_id] = until

    def written(self) -> None:
        """What had nothing to send may have something now."""
        self._due = {name: when for name, when in self._due.items() if when < math.inf}


@dataclass
class Plan:
    """When one session is pulled next."""

    interval: float
    due: float = 0.0
    last: float = -math.inf
    started: float = -math.inf
    """When the last pull began that is under way or has succeeded."""
    fresh: float = -math.inf
    """When the last pull that succeeded began: what was on the server then is here."""
    wanted: float = -math.inf
    """A pull that begins after this is wanted at once, also if one is under way."""
    hoped: float = -math.inf
    """The same, but it waits for the end of a push of the session, which every page would show."""
    brought: PullResult = field(default_factory=PullResult)
    """By the last pull that succeeded."""

    def freshen(self, moment: float) -> bool:
        """Pull soon; False if a pull has begun since the moment."""
        if self.started >= moment:
            return False
        self.due, self.wanted = 0.0, moment
        return True


class PullSchedule:
    """The plans of the sessions that somebody has open."""

    def __init__(self, options: SyncOptions, chance: random.Random) -> None:
        self._options = options
        self._chance = chance
        self._plans: dict[str, Plan] = {}
        self._left: dict[str, Plan] = {}
        self._agents: dict[str, str] = {}
        self._used: set[str] = set()
        self._pushing: Counter[str] = Counter()

    # -- the sessions ----------------------------------------------------------------------------

    def follow(self, session_id: str) -> bool:
        """Pull this session from now on, first at once; False if that is so already."""
        if session_id in self._plans:
            return False
        # A service that makes a session object a request must not pull at each of them.
        plan = self._left.pop(session_id, None)
        self._plans[session_id] = plan or Plan(self._options.poll_interval)
        self._agents[agent_id(session_id)] = session_id
        return True

    def unfollow(self, session_id: str) -> None:
        """Nobody has this session open any more."""
        plan = self._plans.pop(session_id, None)
        if plan is not None:
            self._agents.pop(agent_id(session_id), None)
            self._left[session_id] = plan
            while len(self._left) > LEFT_MOST:
                del self._left[next(iter(self._left))]

    def plan(self, session_id: str) -> Plan | None:
        """The plan of a session; None if nobody has it open."""
        return self._plans.get(session_id)

    def plans(self) -> Collection[Plan]:
        """All of them."""
        return self._plans.values()

    def fresh(self, session_id: str) -> float:
        """When the last pull that succeeded began. Safe from any thread."""
        plan = self._plans.get(session_id)
        return -math.inf if plan is None else plan.fresh

    # -- what has happened -----------------------------------------------------------------------

    def use(self, session_id: str) -> None:
        """The session is in use: poll it at the pace of use. Safe from any thread."""
        self._used.add(session_id)

    def freshen(self, session_id: str, moment: float) -> bool:
        """Pull this session soon; False if a pull has begun since the moment, or nobody has it
        open."""
        plan = self._plans.get(session_id)
        return plan is not None and plan.freshen(moment)

    def hint(self, agent: str | None, moment: float) -> bool:
        """Something was stored for an agent, or (None) anything may have been for any; whether a
        session is to be pulled soon."""
        if agent is not None:
            return agent in self._agents and self.freshen(self._agents[agent], moment)
        hints = [self._freshen_some_time(name, plan, moment) for name, plan in self._plans.items()]
        return any(hints)

    def _freshen_some_time(self, session_id: str, plan: Plan, moment: float) -> bool:
        """Pull this session soon, or after the push that is under way: nothing says that there is
        anything new but what the push has stored."""
        if session_id not in self._pushing:
            return plan.freshen(moment)
        plan.hoped = moment
        # A long push must not keep others' words away.
        plan.due = min(plan.due, moment + self._options.poll_interval)
        return False

    def deafened(self, now: float) -> None:
        """The stream is down: poll at the usual pace again."""
        for plan in self._plans.values():
            plan.due = min(plan.due, now + plan.interval)

    def push_began(self, session_id: str) -> None:
        """One push more of this session is under way."""
        self._pushing[session_id] += 1

    def push_ended(self, session_id: str) -> bool:
        """One less; whether the session is to be pulled now that the last has ended."""
        self._pushing[session_id] -= 1
        if self._pushing[session_id]:
            return False
        del self._pushing[session_id]
        plan = self._plans.get(session_id)
        if plan is None or plan.hoped <= plan.started:
            return False
        plan.due = 0.0
        return True

    def is_pushing(self, session_id: str) -> bool:
        """Whether a push of this session is under way."""
        return session_id in self._pushing

    def pulled(
        self, session_id: str, plan: Plan, now: float, *, is_news: bool, is_listening: bool
    ) -> None:
        """A pull has ended well: when the next one is. ``is_listening``: the stream is up."""
        options = self._options
        slowest = max(options.poll_interval, options.poll_interval_idle)
        plan.interval = options.poll_interval if is_news else min(plan.interval * GROWTH, slowest)
        plan.last = now
        interval = plan.interval
        if is_listening:
            # One session at a time, however many are open.
            interval = max(interval, options.poll_interval_listening * len(self._plans))
        # Jitter by a fifth, so that devices that started together do not stay together.
        plan.due = now + interval * (0.9 + 0.2 * self._chance.random())
        if self._wanted(session_id, plan) > plan.started:
            plan.due = 0.0

    def given_up(self, session_id: str) -> bool:
        """The pull that began last has failed, or whoever asked for it has gone: it has seen
        nothing. Whether another one is wanted at once by those who relied on it."""
        plan = self._plans.get(session_id)
        if plan is None:
            return False
        plan.started = plan.fresh
        if self._wanted(session_id, plan) <= plan.started:
            return False
        plan.due = 0.0
        return True

    def _wanted(self, session_id: str, plan: Plan) -> float:
        return plan.wanted if self.is_pushing(session_id) else max(plan.wanted, plan.hoped)

    # -- what is to be done ----------------------------------------------------------------------

    def due(
        self, now: float, *, besides: Collection[str], is_listening: bool
    ) -> tuple[list[str], float]:
        """Which sessions are pulled now, and when the next one is. ``besides``: those under way;
        ``is_listening``: the stream is up."""
        self._hasten(is_listening=is_listening)
        idle = {name: plan.due for name, plan in self._plans.items() if name not in besides}
        nearest = min((due for due in idle.values() if due > now), default=math.inf)
        return [name for name, due in idle.items() if due <= now], nearest

    def _hasten(self, *, is_listening: bool) -> None:
        """Sessions that were used since the last look are polled at the pace of use."""
        used, self._used = self._used, set()
        for session_id in used:
            plan = self._plans.get(session_id)
            if plan is not None:
                plan.interval = self._options.poll_interval
                if not is_listening:
                    plan.due = min(plan.due, plan.last + plan.interval)
