"""The context of replication: attempts, locks and signatures."""

from __future__ import annotations

import anyio
import pytest

from cached_session.errors import JournalError
from cached_session.remote.errors import RemoteError, Scope, Verdict
from cached_session.replication.context import Context
from tests.unit.replication.fakes import UNREACHABLE, WRITER, Clock, FakeServer, context_of


async def fetch(context: Context) -> str:
    await context.remote.fetch("agent", "memory")
    return "result"


async def test_an_attempt_returns_the_result_of_its_work() -> None:
    """An answer ends the pauses of earlier failures."""
    context = context_of(FakeServer())
    await context.pauses.record_failure("talk", UNREACHABLE)
    assert await context.attempt("talk", lambda: fetch(context)) == "result"
    assert not await context.pauses.is_server_paused()


async def test_an_attempt_without_a_request_ends_no_pause() -> None:
    """It shows nothing about the server."""
    context = context_of(FakeServer())
    await context.pauses.record_failure("talk", UNREACHABLE)

    async def nothing() -> None:
        return None

    await context.attempt("talk", nothing)
    assert await context.pauses.is_server_paused()


async def test_a_failed_attempt_starts_a_pause() -> None:
    """The error goes to the caller after that."""
    server = FakeServer()
    server.failures["fetch"] = [UNREACHABLE]
    context = context_of(server)
    with pytest.raises(RemoteError) as raised:
        await context.attempt("talk", lambda: fetch(context))
    assert raised.value is UNREACHABLE
    assert await context.pauses.wait_ms("talk") > 0


async def test_an_unexpected_error_pauses_its_session_alone() -> None:
    """A bug in the work of one session does not stop the others, and is not retried in a loop."""
    context = context_of(FakeServer())

    async def bug() -> None:
        raise KeyError("typo")

    with pytest.raises(RemoteError) as raised:
        await context.attempt("talk", bug)
    assert raised.value.scope is Scope.SESSION
    assert raised.value.verdict is Verdict.UNREACHABLE
    assert "KeyError: 'typo'" in raised.value.reason
    assert await context.pauses.wait_ms("talk") > 0
    assert await context.pauses.wait_ms("other") == 0


async def test_an_error_of_the_journal_starts_no_pause() -> None:
    """It says nothing about the server, and reaches the caller as it is."""
    context = context_of(FakeServer())

    async def full() -> None:
        raise JournalError("the disk is full")

    with pytest.raises(JournalError):
        await context.attempt("talk", full)
    assert await context.pauses.wait_ms("talk") == 0


async def test_one_attempt_at_a_time_looks_for_a_server_that_is_out_of_reach() -> None:
    """All others wait for its result."""
    context = context_of(FakeServer())
    await context.pauses.record_failure("talk", UNREACHABLE)
    running = most = 0

    async def work() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await anyio.lowlevel.checkpoint()
        running -= 1

    async with anyio.create_task_group() as group:
        for number in range(5):
            group.start_soon(context.attempt, f"session {number}", work)
    assert most == 1


async def test_a_lock_belongs_to_one_kind_of_work_on_one_session() -> None:
    """It is the same as long as it is in use."""
    context = context_of(FakeServer())
    lock = context.lock("push", "talk")
    assert context.lock("push", "talk") is lock
    assert context.lock("pull", "talk") is not lock
    assert context.lock("push", "other") is not lock


def test_the_author_signs_with_the_writer_and_the_time() -> None:
    """The wall clock dates what replication writes."""
    clock = Clock()
    author = context_of(FakeServer(), clock=clock).author()
    assert (author.writer, author.now_ms) == (WRITER, clock.wall)
