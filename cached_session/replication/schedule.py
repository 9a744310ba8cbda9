"""The schedules of pushes and pulls: which sessions are due now, and when the next session is due.

Pure: the callers report events and pass the time. All times are in monotonic seconds.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from cached_session.history.session_ref import SessionRef
from cached_session.options import SyncOptions
from cached_session.replication.results import PullResult

__all__ = ["PullPlan", "PullSchedule", "PushSchedule"]

MAX_CLOSED_PLANS = 10_000
"""The maximum number of plans of closed sessions in memory. A session that is opened again uses its
old plan."""
LISTENING_IN_USE = 45.0
"""The longest time in seconds between two pulls of a session that is in use while the event stream
is open. A stream that reports nothing delays the items of other devices by this time."""
GROWTH = 1.5
"""The factor by which the interval of a session grows after each pull without new operations."""


class PushSchedule:
    """The time of the next push of each session. A session without a time is due immediately."""

    def __init__(self) -> None:
        self._due: dict[str, float] = {}

    def due(
        self, waiting: Sequence[str], now: float, *, besides: Collection[str]
    ) -> tuple[list[str], float]:
        """Return the sessions that are due, and the time when the next session is due.

        Args:
            waiting: the sessions with unsent operations.
            besides: the sessions that are being pushed. They are left out.
        """
        self._due = {name: self._due[name] for name in waiting if name in self._due}
        idle = {name: self._due.get(name, -math.inf) for name in waiting if name not in besides}
        nearest = min((due for due in idle.values() if due > now), default=math.inf)
        return [name for name, due in idle.items() if due <= now], nearest

    def put_off(self, session_id: str, until: float) -> None:
        """Delay the next push of a session until the time ``until``.

        If ``until`` is infinity, the delay lasts until the next call of `written`.
        """
        self._due[session_id] = until

    def written(self) -> None:
        """Make all sessions due whose delay lasts until an operation is written."""
        self._due = {name: when for name, when in self._due.items() if when < math.inf}


@dataclass
class PullPlan:
    """The times of the last and of the next pull of one session."""

    interval: float
    """The current time between two pulls, in seconds."""
    due: float = 0.0
    """The time of the next pull."""
    last: float = -math.inf
    """The end of the last planned pull that has succeeded."""
    started: float = -math.inf
    """The beginning of the last pull that is running or has succeeded."""
    last_success: float = -math.inf
    """The beginning of the last pull that has succeeded. The pull has read what the server held at
    this time."""
    wanted: float = -math.inf
    """The time of the last request for a pull. Only a pull that begins after this time satisfies
    the request, not a pull that was already running."""
    wanted_after_push: float = -math.inf
    """The time of the last request for a pull that waits for the end of a running push. A pull
    during the push would only list the memories that the push stores."""
    last_result: PullResult = field(default_factory=PullResult)
    """The result of the last pull that has succeeded."""

    @property
    def is_requested(self) -> bool:
        """True if a pull was requested and none has begun since. If False, the next pull is a
        poll."""
        return max(self.wanted, self.wanted_after_push) > self.last_success

    def request_pull(self, moment: float) -> bool:
        """Make the session due; return False if a pull has begun at ``moment`` or later."""
        if self.started >= moment:
            return False
        self.due, self.wanted = 0.0, moment
        return True


class PullSchedule:
    """The plans of the open sessions."""

    def __init__(self, options: SyncOptions, chance: random.Random) -> None:
        self._options = options
        self._chance = chance
        self._plans: dict[str, PullPlan] = {}
        self._closed: dict[str, PullPlan] = {}
        self._agents: dict[str, str] = {}
        self._used: set[str] = set()
        self._pushing: Counter[str] = Counter()

    # -- the sessions ----------------------------------------------------------------------------

    def follow(self, session_id: str) -> bool:
        """Add a session to the schedule; return False if the schedule already has it.

        The first pull is due now, or when the old plan is due if the session was open before.
        """
        if session_id in self._plans:
            return False
        # Use the old plan: a service may open a session for each of its requests, and must not
        # cause a pull each time.
        plan = self._closed.pop(session_id, None)
        self._plans[session_id] = plan or PullPlan(self._options.poll_interval)
        self._agents[SessionRef.of(session_id).agent] = session_id
        return True

    def unfollow(self, session_id: str) -> None:
        """Remove a session that is no longer open from the schedule, and store its plan."""
        plan = self._plans.pop(session_id, None)
        if plan is not None:
            self._agents.pop(SessionRef.of(session_id).agent, None)
            self._closed[session_id] = plan
            while len(self._closed) > MAX_CLOSED_PLANS:
                del self._closed[next(iter(self._closed))]

    def plan(self, session_id: str) -> PullPlan | None:
        """Return the plan of a session; None if the session is not open."""
        return self._plans.get(session_id)

    def plans(self) -> Collection[PullPlan]:
        """Return the plans of all open sessions."""
        return self._plans.values()

    def last_success(self, session_id: str) -> float:
        """Return the beginning of the last pull of a session that has succeeded.

        The method is safe to call from any thread.
        """
        plan = self._plans.get(session_id)
        return -math.inf if plan is None else plan.last_success

    # -- events ----------------------------------------------------------------------------------

    def use(self, session_id: str) -> None:
        """Mark a session as used, so that it is polled at `SyncOptions.poll_interval` again.

        The method is safe to call from any thread.
        """
        self._used.add(session_id)

    def request_pull(self, session_id: str, moment: float) -> bool:
        """Make a session due.

        Return False if the session is not open, or if a pull has begun at ``moment`` or later.
        """
        plan = self._plans.get(session_id)
        return plan is not None and plan.request_pull(moment)

    def session_of(self, agent: str) -> str | None:
        """Return the open session of an agent; None if no open session has this agent."""
        return self._agents.get(agent)

    def hint(self, agent: str | None, moment: float) -> bool:
        """Record a hint that the server has stored a memory.

        Args:
            agent: the agent of the memory; None if events of any agent may have been missed.
            moment: the time of the hint.

        Returns:
            Whether a session has become due.
        """
        if agent is not None:
            return agent in self._agents and self.request_pull(self._agents[agent], moment)
        hints = [self._request_after_push(name, plan, moment) for name, plan in self._plans.items()]
        return any(hints)

    def _request_after_push(self, session_id: str, plan: PullPlan, moment: float) -> bool:
        """Make a session due now, or at the end of its running push.

        During a push, the hint may be about a memory that the push itself has stored.
        """
        if session_id not in self._pushing:
            return plan.request_pull(moment)
        plan.wanted_after_push = moment
        # Pull after one interval even if the push is still running: a long push must not delay the
        # items of other devices.
        plan.due = min(plan.due, moment + self._options.poll_interval)
        return False

    def stream_lost(self, now: float) -> None:
        """Return all sessions to their usual poll interval, because the event stream is down."""
        for plan in self._plans.values():
            plan.due = min(plan.due, now + plan.interval)

    def push_began(self, session_id: str) -> None:
        """Record the beginning of a push of a session."""
        self._pushing[session_id] += 1

    def push_ended(self, session_id: str) -> bool:
        """Record the end of a push; return whether the session has become due."""
        self._pushing[session_id] -= 1
        if self._pushing[session_id]:
            return False
        del self._pushing[session_id]
        plan = self._plans.get(session_id)
        if plan is None or plan.wanted_after_push <= plan.started:
            return False
        plan.due = 0.0
        return True

    def is_pushing(self, session_id: str) -> bool:
        """Return whether a push of a session is running."""
        return session_id in self._pushing

    def pulled(
        self, session_id: str, plan: PullPlan, now: float, *, is_news: bool, is_listening: bool
    ) -> None:
        """Plan the next pull after a pull has succeeded.

        Args:
            now: the end of the pull.
            is_news: whether the pull has found new operations.
            is_listening: whether the event stream is up.
        """
        options = self._options
        slowest = max(options.poll_interval, options.poll_interval_idle)
        plan.interval = options.poll_interval if is_news else min(plan.interval * GROWTH, slowest)
        plan.last = now
        interval = plan.interval
        if is_listening:
            # Let the interval grow with the number of open sessions, so that the number of requests
            # per second does not grow.
            interval = max(interval, options.poll_interval_listening * len(self._plans))
        # A jitter of up to a tenth keeps devices that started together from pulling together.
        plan.due = now + interval * (0.9 + 0.2 * self._chance.random())
        if self._wanted(session_id, plan) > plan.started:
            plan.due = 0.0

    def pull_failed(self, session_id: str) -> bool:
        """Record that the last started pull of a session has failed or was cancelled.

        Returns:
            Whether the session has become due, because a request relied on the failed pull.
        """
        plan = self._plans.get(session_id)
        if plan is None:
            return False
        plan.started = plan.last_success
        if self._wanted(session_id, plan) <= plan.started:
            return False
        plan.due = 0.0
        return True

    def _wanted(self, session_id: str, plan: PullPlan) -> float:
        """Return the earliest time at which a pull that satisfies every request may begin. While a
        push is running, requests that wait for the end of the push do not count.
        """
        return (
            plan.wanted if self.is_pushing(session_id) else max(plan.wanted, plan.wanted_after_push)
        )

    # -- the next pulls --------------------------------------------------------------------------

    def due(
        self, now: float, *, besides: Collection[str], is_listening: bool
    ) -> tuple[list[str], float]:
        """Return the sessions that are due, and the time when the next session is due.

        Args:
            besides: the sessions that are being pulled. They are left out.
            is_listening: whether the event stream is up.
        """
        self._poll_used(is_listening=is_listening)
        idle = {name: plan.due for name, plan in self._plans.items() if name not in besides}
        nearest = min((due for due in idle.values() if due > now), default=math.inf)
        return [name for name, due in idle.items() if due <= now], nearest

    def _poll_used(self, *, is_listening: bool) -> None:
        """Poll the sessions used since the last call at `SyncOptions.poll_interval` again."""
        used, self._used = self._used, set()
        for session_id in used:
            plan = self._plans.get(session_id)
            if plan is not None:
                plan.interval = self._options.poll_interval
                wait = max(plan.interval, LISTENING_IN_USE) if is_listening else plan.interval
                plan.due = min(plan.due, plan.last + wait)
