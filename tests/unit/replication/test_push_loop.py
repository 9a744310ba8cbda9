"""The loop that pushes sessions."""

from __future__ import annotations

import math

import anyio
import pytest

from cached_session.errors import JournalError
from cached_session.journal.journal import Journal
from cached_session.remote.errors import RemoteError
from cached_session.replication.push_loop import Pusher
from tests.unit.replication.fakes import UNREACHABLE, FakeServer, add, context_of, open_journal


def pusher(server: FakeServer, journal: Journal, events: list[str]) -> Pusher:
    return Pusher(
        context_of(server, journal, push_delay=0.0),
        on_began=lambda session_id: events.append(f"{session_id} began"),
        on_ended=lambda session_id: events.append(f"{session_id} ended"),
    )


async def test_each_push_is_reported() -> None:
    """Also one that fails."""
    server, journal, events = FakeServer(), open_journal(), list[str]()
    add(journal, "a")
    here = pusher(server, journal, events)
    server.failures["store"] = [UNREACHABLE]
    with pytest.raises(RemoteError):
        await here.push_now("talk")
    assert (await here.push_now("talk")).acked == 1
    assert events == ["talk began", "talk ended"] * 2


async def test_a_paused_session_is_not_pushed() -> None:
    """The loop waits until its pause is over; a caller may push all the same."""
    server, journal = FakeServer(), open_journal()
    add(journal, "a")
    here = pusher(server, journal, [])
    server.failures["store"] = [UNREACHABLE]
    assert await here._push_unless_paused("talk") >= 0.05
    requests = list(server.requests)
    assert await here._push_unless_paused("talk") > 0
    assert server.requests == requests
    await here.push_now("talk")
    assert await here._push_unless_paused("talk") == math.inf


async def test_an_error_of_the_journal_is_recorded_and_backed_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The server would be sent the same operations again each time."""
    server, journal = FakeServer(), open_journal()
    add(journal, "a")
    context = context_of(server, journal)
    here = Pusher(context, on_began=lambda _: None, on_ended=lambda _: None)

    async def full(*_: object) -> None:
        raise JournalError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(journal.outbox, "acknowledge", full)
        assert 0 < await here._push_unless_paused("talk") < math.inf
    assert context.local_errors.reason("talk") == "the disk is full"
    await here.push_now("talk")
    assert context.local_errors.reason("talk") is None


async def test_the_loop_pushes_every_session_with_something_unsent() -> None:
    """And what is written while it runs."""
    server, journal = FakeServer(), open_journal()
    for name in ("a", "b", "c"):
        add(journal, "first", session_id=name)
    ended = anyio.Semaphore(0)
    here = Pusher(
        context_of(server, journal, push_delay=0.0),
        on_began=lambda _: None,
        on_ended=lambda _: ended.release(),
    )
    async with anyio.create_task_group() as group:
        group.start_soon(here.run)
        for _ in range(3):
            await ended.acquire()
        assert len(server.rows) == 3
        add(journal, "second", session_id="b")
        here.wake()
        await ended.acquire()
        assert len(server.rows) == 4
        group.cancel_scope.cancel()


async def test_a_long_push_does_not_hold_up_other_sessions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another session is pushed while the first one waits for its answer."""
    server, journal = FakeServer(), open_journal()
    for name in ("slow", "quick"):
        add(journal, "item", session_id=name)
    answer, pushed = anyio.Event(), anyio.Event()
    ended: list[str] = []

    def on_ended(session_id: str) -> None:
        ended.append(session_id)
        pushed.set()

    here = Pusher(context_of(server, journal), on_began=lambda _: None, on_ended=on_ended)
    store = server.store

    async def slow(agent: str, memories: list) -> set[str]:
        if "slow" in agent:
            await answer.wait()
        return await store(agent, memories)

    monkeypatch.setattr(server, "store", slow)
    async with anyio.create_task_group() as group:
        group.start_soon(here.run)
        await pushed.wait()
        assert ended == ["quick"]
        pushed = anyio.Event()
        answer.set()
        await pushed.wait()
        assert ended == ["quick", "slow"]
        group.cancel_scope.cancel()
