"""Pulls on request and by plan, shared by all who wait for them."""

from __future__ import annotations

import random
from typing import Any

import anyio
import pytest

from cached_session.errors import JournalError
from cached_session.remote.errors import RemoteError
from cached_session.replication.context import Context
from cached_session.replication.pull_loop import Puller
from cached_session.replication.schedule import PullSchedule
from tests.unit.replication.devices import items, operation, put
from tests.unit.replication.fakes import SESSION, UNREACHABLE, Clock, FakeServer, context_of

TALK = SESSION.session_id


class Made:
    """A puller of one followed session, and what it reports."""

    def __init__(self, server: FakeServer, **options: Any) -> None:
        self.clock = Clock()
        self.context: Context = context_of(server, clock=self.clock, **options)
        self.schedule = PullSchedule(self.context.options, random.Random(1))
        self.schedule.follow(TALK)
        self.pulled: list[str] = []
        self.went_back: list[str] = []
        self.puller = Puller(
            self.context,
            self.schedule,
            is_listening=lambda: False,
            on_pulled=self.pulled.append,
            on_went_back=self._note_back,
        )
        plan = self.schedule.plan(TALK)
        assert plan is not None
        self.plan = plan

    async def _note_back(self, session_id: str) -> None:
        self.went_back.append(session_id)


class Held(FakeServer):
    """A server that answers listings only when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.go_on = anyio.Event(), anyio.Event()

    async def list_memories(self, agent: str, *, offset: int, limit: int) -> list[dict[str, Any]]:
        self.asked.set()
        await self.go_on.wait()
        return await super().list_memories(agent, offset=offset, limit=limit)


async def test_a_pull_is_reported_and_planned() -> None:
    """Every page may have changed the session, and so may the end of the pull."""
    server = FakeServer()
    put(server, operation(1))
    made = Made(server)
    result = await made.puller.pull_now(TALK)
    assert result.new == 1
    assert items(made.context.journal) == ["t1"]
    assert made.pulled == [TALK, TALK]
    assert made.plan.last_success == made.clock.moment
    assert made.plan.last_result is result


async def test_a_sync_uses_a_pull_that_began_after_it() -> None:
    """Only the gaps are searched for, since the caller waits for them."""
    server = FakeServer()
    put(server, operation(2))
    made = Made(server)
    await made.puller.pull_now(TALK)
    put(server, operation(1))
    server.requests.clear()
    result = await made.puller.pull_since(TALK, made.clock.moment - 1)
    assert result.new == 2
    assert server.requests == ["fetch"]
    assert items(made.context.journal) == ["t1", "t2"]


async def test_a_sync_begins_a_pull_if_the_last_one_is_older() -> None:
    """That one has not seen what was stored since."""
    server = FakeServer()
    made = Made(server)
    await made.puller.pull_now(TALK)
    put(server, operation(1))
    made.clock.advance(1)
    assert (await made.puller.pull_since(TALK, made.clock.moment - 0.5)).new == 1


async def test_a_sync_joins_a_pull_under_way() -> None:
    """The session is listed once."""
    server = Held()
    put(server, operation(1))
    made = Made(server)
    results = []

    async def sync() -> None:
        results.append(await made.puller.pull_since(TALK, made.clock.moment - 1))

    async with anyio.create_task_group() as group:
        group.start_soon(made.puller.pull_now, TALK)
        await server.asked.wait()
        group.start_soon(sync)
        await anyio.lowlevel.checkpoint()
        server.go_on.set()
    assert [result.new for result in results] == [1]
    assert server.requests.count("list") == 2  # the page, and the empty one below it


async def test_a_failed_pull_pauses_its_session() -> None:
    """The loop tries again after the pause, and an explicit call gets the error."""
    server = FakeServer()
    made = Made(server)
    server.failures["list"] = [UNREACHABLE]
    with pytest.raises(RemoteError):
        await made.puller.pull_now(TALK)
    assert made.plan.last_success < 0
    server.requests.clear()
    await made.puller._pull_planned(TALK)
    assert server.requests == []
    assert made.plan.due > made.clock.moment


async def test_a_planned_pull_that_fails_is_reported() -> None:
    """A reader that waits for it goes on with what is here."""
    server = FakeServer()
    made = Made(server)
    server.failures["list"] = [UNREACHABLE]
    await made.puller._pull_planned(TALK)
    assert made.pulled == [TALK]
    assert made.plan.due > made.clock.moment


async def test_an_error_of_the_journal_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """No row can tell of it."""
    made = Made(FakeServer())

    async def of(_: object) -> None:
        raise JournalError("disk full")

    monkeypatch.setattr(made.context.journal.pulls, "of", of)
    await made.puller._pull_planned(TALK)
    assert made.context.local_errors.reason(TALK) == "disk full"
    assert made.plan.due > made.clock.moment


async def test_a_server_that_shows_less_is_reported() -> None:
    """An audit may find out why."""
    server = FakeServer()
    put(server, operation(1), operation(2))
    made = Made(server)
    await made.puller.pull_now(TALK)
    server.rows.popitem()
    await made.puller.pull_now(TALK)
    assert made.went_back == [TALK]


async def test_the_loop_pulls_followed_sessions() -> None:
    """Also one that is due earlier than planned."""
    server = FakeServer()
    put(server, operation(1))
    made = Made(server)
    async with anyio.create_task_group() as group:
        group.start_soon(made.puller.run)
        with anyio.fail_after(10):
            while made.plan.last_success < 0:
                await anyio.lowlevel.checkpoint()
            put(server, operation(2))
            made.clock.advance(1)
            assert made.schedule.request_pull(TALK, made.clock.moment)
            made.puller.wake()
            while len(items(made.context.journal)) < 2:
                await anyio.lowlevel.checkpoint()
        group.cancel_scope.cancel()


async def test_a_session_that_nobody_has_open_is_not_pulled() -> None:
    """It was closed after its pull became due."""
    server = FakeServer()
    made = Made(server)
    made.schedule.unfollow(TALK)
    await made.puller._pull_planned(TALK)
    assert server.requests == []
