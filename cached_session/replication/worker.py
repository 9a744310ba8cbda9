"""The background task: who replicates, when to push, when to pull. Deciding is elsewhere.

One per open cache and event loop. Of several processes on one journal the one that holds the file
lock pushes for all of them, and the others look out for its death; each pulls the sessions that it
has open. A failure in one session never stops another.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from functools import partial

import anyio
from filelock import BaseFileLock, Timeout

from cached_session import telemetry
from cached_session.errors import CachedSessionError, JournalError, SessionClosed
from cached_session.journal import audits, compaction, reads
from cached_session.remote.base import Listenable
from cached_session.remote.naming import agent_id
from cached_session.remote.verdicts import RemoteError, Verdict
from cached_session.replication.audit import AuditReport, audit
from cached_session.replication.backoff import growing
from cached_session.replication.claim import settle_claims
from cached_session.replication.holes import repair
from cached_session.replication.incoming import PullResult
from cached_session.replication.link import Link, log
from cached_session.replication.listen import Listener
from cached_session.replication.pull import pull
from cached_session.replication.push import PushResult, push

__all__ = ["Replicator"]

LEFT_MOST = 10_000
"""Sessions that nobody has open whose schedule is remembered."""
SUSPICION = 1 / 24
"""Of the audit interval (an hour of a day): audits of one session that were not due, or failed, are
not closer than this."""
MOST_AUDITS = 96
"""Of a cache in an audit interval (four an hour of a day): what is asked for when nothing happens
does not grow with the sessions. Those that are suspected do not wait for it."""
LONGEST_LOOK = 60.0
"""Seconds between looks at what audit is due: another process may have made one."""
GROWTH = 1.5
"""Each pull that brings nothing makes the next one this much later."""


@dataclass
class _Schedule:
    """When a session is pulled next (monotonic seconds)."""

    interval: float
    due: float = 0.0
    last: float = -math.inf
    started: float = -math.inf
    fresh: float = -math.inf
    """When the last pull that succeeded began: what was on the server then is here."""
    wanted: float = -math.inf
    """A pull that begins after this is wanted at once, also if one is under way."""
    hoped: float = -math.inf
    """The same, but it waits for the end of a push of the session, which every page would show."""
    brought: PullResult = field(default_factory=PullResult)
    """By the last pull that succeeded."""


@dataclass
class _Pull:
    """A pull under way."""

    began: float
    ended: anyio.Event = field(default_factory=anyio.Event)
    result: PullResult | None = None
    """None while it is under way, and if it failed."""


class Replicator:
    """Keeps a journal and a server in step until cancelled."""

    def __init__(
        self,
        link: Link,
        lock: BaseFileLock | None,
        *,
        on_pulled: Callable[[str], None],
        on_pushed: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.link = link
        self._lock = lock
        self._on_pulled = on_pulled
        self._on_pushed = on_pushed
        self._wake = anyio.Event()
        self._audit_wake = anyio.Event()
        self._pull_wake = anyio.Event()
        self._schedules: dict[str, _Schedule] = {}
        self._left: dict[str, _Schedule] = {}
        self._pulls: dict[str, _Pull] = {}
        self._pushing: Counter[str] = Counter()
        self._touched: set[str] = set()
        self._agents: dict[str, str] = {}
        self._troubles: dict[str, tuple[int, str]] = {}
        self.listener = Listener(link, self._hinted, self._deaf)
        self.is_leader = False

    # -- told by sessions (from the replicator's own event loop) ---------------------------------

    def wake(self) -> None:
        """Something was written."""
        self._wake.set()

    def follow(self, session_id: str) -> None:
        """Pull this session from now on, first at once."""
        if session_id not in self._schedules:
            # A service that makes a session object a request must not pull at each of them.
            plan = self._left.pop(session_id, None)
            self._schedules[session_id] = plan or _Schedule(self.link.options.poll_interval)
            self._agents[agent_id(session_id)] = session_id
            self._pull_wake.set()

    def unfollow(self, session_id: str) -> None:
        """Nobody has this session open any more."""
        plan = self._schedules.pop(session_id, None)
        if plan is not None:
            self._agents.pop(agent_id(session_id), None)
            self._left[session_id] = plan
            while len(self._left) > LEFT_MOST:
                del self._left[next(iter(self._left))]

    def freshen(self, session_id: str, moment: float) -> None:
        """Pull this session soon, unless a pull has begun since the moment (monotonic)."""
        plan = self._schedules.get(session_id)
        if plan is not None and plan.started < moment:
            plan.due = 0.0
            plan.wanted = moment
            self._pull_wake.set()

    def _freshen_some_time(self, session_id: str) -> None:
        """Pull this session soon, or after the push that is under way: nothing says that there is
        anything new but what the push has stored."""
        moment = self.link.runtime.monotonic()
        if session_id in self._pushing:
            plan = self._schedules[session_id]
            plan.hoped = moment
            # A long push must not keep others' words away.
            plan.due = min(plan.due, moment + self.link.options.poll_interval)
        else:
            self.freshen(session_id, moment)

    def _hinted(self, agent: str | None) -> None:
        """Something was stored for an agent, or (None) anything may have been for any."""
        if agent is None:
            for name in list(self._schedules):
                self._freshen_some_time(name)
        elif agent in self._agents:
            self.freshen(self._agents[agent], self.link.runtime.monotonic())

    def _deaf(self) -> None:
        """The stream is down: poll at the usual pace again."""
        for plan in self._schedules.values():
            plan.due = min(plan.due, self.link.runtime.monotonic() + plan.interval)
        self._pull_wake.set()

    def fresh(self, session_id: str) -> float:
        """When the last pull that succeeded began (monotonic). Safe from any thread."""
        plan = self._schedules.get(session_id)
        return -math.inf if plan is None else plan.fresh

    def touch(self, session_id: str) -> None:
        """The session is in use: poll it at the pace of use. Safe from any thread."""
        self._touched.add(session_id)

    def trouble(self, session_id: str | None) -> str | None:
        """Why the journal keeps a session (None: any) from being pushed, such as a full disk: no
        row can tell, for none can be written. Safe from any thread."""
        if session_id is not None:
            return self._troubles.get(session_id, (0, None))[1]
        return next((reason for _, reason in list(self._troubles.values())), None)

    # -- the task --------------------------------------------------------------------------------

    async def run(self) -> None:
        """Replicate until cancelled; lets go of the lock and of the connections on the way out."""
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._supervised, self._push_loop)
                group.start_soon(self._supervised, self._pull_loop)
                if self.link.options.audit_interval:
                    group.start_soon(self._supervised, self._audit_loop)
                remote = self.link.remote
                if self.link.options.listen and isinstance(remote, Listenable):
                    group.start_soon(self._supervised, lambda: self.listener.run(remote))
                if self.link.options.prune_interval:
                    group.start_soon(self._supervised, self._tidy_loop)
        finally:
            if self.is_leader and self._lock is not None:
                self._lock.release()
            self.is_leader = False
            with anyio.CancelScope(shield=True):
                await self.link.remote.aclose()

    def _lead(self) -> bool:
        """Whether this process pushes; never waits for the lock."""
        if self.is_leader:
            return True
        if self._lock is None:
            self.is_leader = True
            return True
        try:
            # A lock attempt is two system calls on a local file: no thread needed for it.
            self._lock.acquire(blocking=False)
        except Timeout:
            return False
        except OSError as error:
            log.error("the lock beside the journal cannot be taken: %s", error)
            return False
        self.is_leader = True
        return True

    async def _supervised(self, loop: Callable[[], Awaitable[None]]) -> None:
        """Start a loop again after an error that nobody foresaw: reported, and never for good."""
        while True:
            try:
                await loop()
            except SessionClosed:
                return
            except JournalError as error:
                log.error("replication waits for the journal: %s", error)
            except Exception:  # noqa: BLE001 - one that nobody foresaw must not end it
                log.exception("replication stumbled and goes on")
            await anyio.sleep(self.link.options.backoff_base * 2)

    async def _push_loop(self) -> None:
        options, clock = self.link.options, self.link.runtime.monotonic
        # A file lock tells nobody when it is free.
        while not self._lead():  # noqa: ASYNC110
            await anyio.sleep(options.watch_interval)
        limiter = anyio.CapacityLimiter(options.parallel_sessions)
        pushing: set[str] = set()
        due: dict[str, float] = {}

        async def one(session_id: str) -> None:
            try:
                async with limiter:
                    wait = await self._push_one(session_id)
                if wait == math.inf and await self.link.journal.read(
                    lambda conn: reads.has_unsent(conn, session_id)
                ):
                    wait = 0.0  # written while the push was ending
                due[session_id] = clock() + wait
                if wait < math.inf:
                    self._wake.set()
            finally:
                pushing.discard(session_id)

        async with anyio.create_task_group() as group:
            while True:
                # Asked before the outbox is read: what is written after that changes it.
                version = await self.link.journal.read(_data_version)
                waiting = await self.link.journal.read(reads.pending_sessions)
                due = {name: due[name] for name in waiting if name in due}
                # A push under way is nobody else's business: a long one must not hold up others.
                idle = [name for name in waiting if name not in pushing]
                for name in idle:
                    if due.get(name, 0.0) <= clock():
                        pushing.add(name)
                        group.start_soon(one, name)
                nearest = min((due.get(name, math.inf) for name in idle), default=math.inf)
                wait = min(max(0.0, nearest - clock()), options.backoff_max)
                if await self._woken(wait, version):
                    # More words often follow the first at once: let them leave together.
                    await anyio.sleep(options.push_delay)
                    # What had nothing to send may have something now.
                    due = {name: when for name, when in due.items() if when < math.inf}

    async def _woken(self, delay: float, version: object) -> bool:
        """Wait for a write here, a write of another process, or the delay; True for a write."""
        until = self.link.runtime.monotonic() + delay
        while True:
            left = until - self.link.runtime.monotonic()
            if left <= 0:
                return False
            with anyio.move_on_after(min(left, self.link.options.watch_interval)):
                await self._wake.wait()
            if self._wake.is_set():
                self._wake = anyio.Event()
                return True
            if await self.link.journal.read(_data_version) != version:
                return True

    async def _push_one(self, session_id: str) -> float:
        """Push a session unless its gate is shut; seconds until it wants to be tried again."""
        wait = await self.link.wait_ms(session_id)
        if wait:
            return wait / 1000
        try:
            result = await self.push_now(session_id)
        except RemoteError:
            return max(0.05, await self.link.wait_ms(session_id) / 1000)
        except SessionClosed:
            raise
        except CachedSessionError as error:
            failures, _ = self._troubles.get(session_id, (0, ""))
            self._troubles[session_id] = failures + 1, str(error)
            log.log(
                logging.DEBUG if failures else logging.ERROR,
                "push of session %r failed: %s",
                session_id,
                error,
                extra={"session": session_id},
            )
            # What the server took, and the journal could not note, is sent again each time.
            return growing(failures, self.link.options, self.link.runtime.random)
        return self.link.options.claim_patience if result.unsettled else math.inf

    async def _pull_loop(self) -> None:
        clock = self.link.runtime.monotonic
        limiter = anyio.CapacityLimiter(self.link.options.parallel_sessions)
        pulling: set[str] = set()

        async def one(session_id: str) -> None:
            try:
                async with limiter:
                    await self._pull_one(session_id)
            finally:
                pulling.discard(session_id)
                self._pull_wake.set()

        async with anyio.create_task_group() as group:
            while True:
                self._hasten()
                # A pull under way is nobody else's business: a long one must not hold up others.
                idle = {
                    name: plan.due for name, plan in self._schedules.items() if name not in pulling
                }
                now = clock()
                for name, due in idle.items():
                    if due <= now:
                        pulling.add(name)
                        group.start_soon(one, name)
                nearest = min((due for due in idle.values() if due > now), default=math.inf)
                wait = min(max(0.0, nearest - clock()), self.link.options.watch_interval)
                with anyio.move_on_after(wait):
                    await self._pull_wake.wait()
                if self._pull_wake.is_set():
                    self._pull_wake = anyio.Event()

    def _hasten(self) -> None:
        """Sessions that were used since the last look are polled at the pace of use."""
        touched, self._touched = self._touched, set()
        for session_id in touched:
            plan = self._schedules.get(session_id)
            if plan is not None:
                plan.interval = self.link.options.poll_interval
                if self.listener.is_up:
                    continue
                plan.due = min(plan.due, plan.last + plan.interval)

    async def _pull_one(self, session_id: str) -> float:
        plan = self._schedules.get(session_id)
        if plan is None:
            return math.inf
        clock, options = self.link.runtime.monotonic, self.link.options
        wait = await self.link.wait_ms(session_id) / 1000
        if wait:
            plan.due = clock() + wait
            return math.inf
        try:
            # Whoever calls `sync` may be at it already.
            result = await self._joined(session_id, plan.wanted)
            if result is None:
                result = await self.pull_now(session_id)
        except RemoteError:
            self._on_pulled(session_id)
            plan.due = clock() + max(0.05, await self.link.wait_ms(session_id) / 1000)
            return math.inf
        except SessionClosed:
            raise
        except CachedSessionError as error:
            log.error(
                "pull of session %r failed: %s", session_id, error, extra={"session": session_id}
            )
            plan.due = clock() + options.backoff_base * 2
            return math.inf
        plan.interval = (
            options.poll_interval
            if result.new
            else min(plan.interval * GROWTH, max(options.poll_interval, options.poll_interval_idle))
        )
        plan.last = clock()
        # Jitter by a fifth, so that devices that started together do not stay together.
        interval = plan.interval
        if self.listener.is_up:
            # One session at a time, however many are open.
            interval = max(interval, options.poll_interval_listening * len(self._schedules))
        plan.due = plan.last + interval * (0.9 + 0.2 * self.link.runtime.random.random())
        if (
            max(plan.wanted, -math.inf if session_id in self._pushing else plan.hoped)
            > plan.started
        ):
            plan.due = 0.0
        return math.inf

    async def _tidy_loop(self) -> None:
        while True:
            await anyio.sleep(self.link.options.prune_interval)
            if self.is_leader:
                await compaction.tidy(self.link.journal)

    async def _audit_loop(self) -> None:
        """Compare each session with the server about once an interval, one after the other."""
        options, clock = self.link.options, self.link.runtime.monotonic
        interval = options.audit_interval
        put_off: dict[str, float] = {}
        rests_until = -math.inf
        while True:
            wait = options.watch_interval
            if self.is_leader:
                put_off = {name: until for name, until in put_off.items() if until > clock()}
                now = self.link.runtime.wall_ms()
                session_id, left_ms = await self.link.journal.write(
                    partial(
                        audits.next_due,
                        now_ms=now,
                        interval_ms=int(1000 * interval),
                        who=self.link.writer,
                        besides=frozenset(put_off),
                        only_suspects=clock() < rests_until,
                    )
                )
                wait = min(max(left_ms / 1000, options.watch_interval), LONGEST_LOOK)
                if session_id is not None:
                    try:
                        if await self.link.wait_ms(session_id):
                            raise RemoteError(Verdict.BUSY, "its gate is shut")
                        await self.audit_now(session_id)
                        rests_until = clock() + interval / MOST_AUDITS
                    except RemoteError as error:
                        # The next one in the line must not wait for it.
                        put_off[session_id] = clock() + max(
                            interval * SUSPICION, options.backoff_max
                        )
                        log.info("the audit of %r is put off: %s", session_id, error)
            with anyio.move_on_after(wait):
                await self._audit_wake.wait()
            if self._audit_wake.is_set():
                self._audit_wake = anyio.Event()

    # -- one step, for the loops and for `sync` --------------------------------------------------

    async def push_now(self, session_id: str, *, upto: int | None = None) -> PushResult:
        """Push one session whatever its gates say, or what was written up to a point.

        Raises:
            RemoteError: after the gate was shut.
        """

        async def work() -> PushResult:
            in_doubt = await settle_claims(self.link, session_id)
            result = await push(self.link, session_id, upto=upto)
            result.unsettled = in_doubt
            return result

        self._pushing[session_id] += 1
        try:
            with telemetry.step("push", session_id, self.link.runtime.monotonic):
                result = await self.link.attempt(session_id, work)
        finally:
            # Some of it may have been acknowledged before it failed.
            self._on_pushed(session_id)
            self._end_push(session_id)
        self._troubles.pop(session_id, None)
        return result

    def _end_push(self, session_id: str) -> None:
        self._pushing[session_id] -= 1
        if self._pushing[session_id]:
            return
        del self._pushing[session_id]
        plan = self._schedules.get(session_id)
        if plan is not None and plan.hoped > plan.started:
            plan.due = 0.0
            self._pull_wake.set()

    async def audit_now(self, session_id: str) -> AuditReport:
        """Audit one session whatever its gates say.

        Raises:
            RemoteError: after the gate was shut.
        """
        report = await self.link.attempt(session_id, lambda: audit(self.link, session_id))
        if report.healed or report.forgotten:
            log.warning(
                "the server had lost %d operations of session %r and kept %d removed items; "
                "both are put right",
                report.healed,
                session_id,
                report.forgotten,
            )
        self._on_pulled(session_id)
        return report

    async def pull_now(self, session_id: str, *, all_holes: bool = False) -> PullResult:
        """Pull one session whatever its gates say.

        Raises:
            RemoteError: after the gate was shut.
        """
        one = self._pulls[session_id] = _Pull(self.link.runtime.monotonic())
        plan = self._schedules.get(session_id)
        if plan is not None:
            plan.started = one.began
        try:
            with telemetry.step("pull", session_id, self.link.runtime.monotonic):
                result = await self.link.attempt(
                    session_id,
                    lambda: pull(
                        self.link,
                        session_id,
                        lambda _: self._on_pulled(session_id),
                        all_holes=all_holes,
                    ),
                )
            one.result = result
        finally:
            if self._pulls.get(session_id) is one:
                del self._pulls[session_id]
            one.ended.set()
        interval = self.link.options.audit_interval
        if result.went_back and interval:
            now, grace = self.link.runtime.wall_ms(), int(1000 * interval * SUSPICION)
            await self.link.journal.write(lambda conn: audits.suspect(conn, session_id, now, grace))
            self._audit_wake.set()
        if plan is not None:
            plan.fresh, plan.brought = max(plan.fresh, one.began), result
        self._on_pulled(session_id)
        return result

    async def pull_since(self, session_id: str, moment: float) -> PullResult:
        """What a pull that began after the moment (monotonic) brought, and what can be found of
        all that is missing. None is begun where one has been, or is under way.

        Raises:
            RemoteError: after the gate was shut.
        """
        result = await self._joined(session_id, moment)
        plan = self._schedules.get(session_id)
        if result is None and plan is not None and plan.fresh > moment:
            result = plan.brought
        if result is None:
            return await self.pull_now(session_id, all_holes=True)
        found = await self.link.attempt(session_id, lambda: repair(self.link, session_id))
        self._on_pulled(session_id)
        return replace(result, new=result.new + found.new)

    async def _joined(self, session_id: str, moment: float) -> PullResult | None:
        """The end of a pull under way that began after the moment; None if there is none, or it
        failed."""
        one = self._pulls.get(session_id)
        if one is None or one.began <= moment:
            return None
        await one.ended.wait()
        return one.result


def _data_version(conn: object) -> object:
    # Changes whenever another connection, of this process or another, has committed.
    return conn.execute("PRAGMA data_version").fetchone()  # type: ignore[attr-defined]
