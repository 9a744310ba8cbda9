"""Asking the server to keep a session."""

from __future__ import annotations

import logging

import pytest

from cached_session.replication.retention_guard import GUARD_AGAIN_MS, guard_retention, is_due
from tests.unit.replication.fakes import SESSION, Clock, FakeServer, add, context_of, open_journal

DAY = GUARD_AGAIN_MS


@pytest.mark.parametrize(
    ("guarded_ms", "now_ms", "expected"),
    [
        (0, 1, True),
        (10, 10, False),
        (10, 10 + DAY - 1, False),
        (10, 10 + DAY, True),
        (10_000, 10, True),
    ],
)
def test_the_policy_is_checked_once_a_day(guarded_ms: int, now_ms: int, expected: bool) -> None:
    """Also on first contact, and after a check that a wrong clock has dated."""
    assert is_due(guarded_ms, now_ms) is expected


async def test_one_request_a_day() -> None:
    """Unless the caller asks for another one."""
    server, journal, clock = FakeServer(), open_journal(), Clock()
    add(journal, "a")
    context = context_of(server, journal, clock)
    await guard_retention(context, SESSION)
    await guard_retention(context, SESSION)
    assert server.requests == ["guard"]
    await guard_retention(context, SESSION, anew=True)
    clock.advance(DAY / 1000)
    await guard_retention(context, SESSION)
    assert server.requests == ["guard"] * 3


async def test_a_policy_that_cannot_be_set_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    """In the log and in the journal, until it can be set."""
    server, journal = FakeServer(), open_journal()
    add(journal, "a")
    context = context_of(server, journal)
    server.unguarded = "the key may not"
    with caplog.at_level(logging.WARNING):
        await guard_retention(context, SESSION)
    assert "the key may not" in caplog.text
    assert await journal.retention.is_unguarded(SESSION)
    server.unguarded = ""
    await guard_retention(context, SESSION, anew=True)
    assert not await journal.retention.is_unguarded(SESSION)
