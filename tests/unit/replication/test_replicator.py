"""The background task and its loops."""

from __future__ import annotations

import logging

import anyio
import pytest

from cached_session.errors import JournalError, SessionClosed
from cached_session.replication import replicator as replicator_module
from cached_session.replication.replicator import Replicator
from tests.unit.replication.fakes import FakeServer, add, context_of, open_journal


def replicator(server: FakeServer, pulled: list[str]) -> Replicator:
    context = context_of(server, open_journal(), push_delay=0.0, audit_interval=0.0)
    return Replicator(context, None, on_pulled=pulled.append)


async def test_it_pushes_and_pulls_until_it_is_cancelled() -> None:
    """Then it resigns and closes the connections."""
    server = FakeServer()
    pushed, pulled = anyio.Event(), anyio.Event()
    context = context_of(server, open_journal(), push_delay=0.0, audit_interval=0.0)
    add(context.journal, "a")
    here = Replicator(
        context, None, on_pulled=lambda _: pulled.set(), on_pushed=lambda _: pushed.set()
    )
    here.follow("other")
    async with anyio.create_task_group() as group:
        group.start_soon(here.run)
        await pushed.wait()
        await pulled.wait()
        assert here.leader.is_leader
        group.cancel_scope.cancel()
    assert not here.leader.is_leader
    assert server.requests[-1] == "close"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            JournalError("the disk is full"),
            "cannot use the journal and tries again: the disk is full",
        ),
        (KeyError("typo"), "failed with an unexpected error"),
    ],
)
async def test_a_loop_that_fails_is_started_again(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    message: str,
) -> None:
    """After a pause, and the error is logged."""
    here = replicator(FakeServer(), [])
    runs = 0
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)

    async def loop() -> None:
        nonlocal runs
        runs += 1
        raise error if runs < 3 else SessionClosed("closed")

    monkeypatch.setattr(replicator_module.anyio, "sleep", pause)
    with caplog.at_level(logging.ERROR):
        await here._supervise(loop)
    assert runs == 3
    assert pauses == [here.context.options.backoff_base * 2] * 2
    assert caplog.text.count(message) == 2


async def test_a_request_for_a_pull_makes_an_open_session_due() -> None:
    """One that is not open is not pulled."""
    here = replicator(FakeServer(), [])
    here.request_pull("talk", 1.0)
    assert here.schedule.plan("talk") is None
    here.follow("talk")
    plan = here.schedule.plan("talk")
    assert plan is not None
    plan.due = 1e9
    here.request_pull("talk", 1.0)
    assert plan.due == 0.0
    here.unfollow("talk")
    assert here.schedule.plan("talk") is None
