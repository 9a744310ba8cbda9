"""Pauses after failures."""

from __future__ import annotations

import random

import pytest

from cached_session import SyncOptions
from cached_session.journal.tables.pauses import ActivePauses, Pause
from cached_session.remote.errors import RemoteError, Scope, Verdict
from cached_session.replication.pauses import (
    BUSY,
    UNAUTHORIZED,
    ends_with_success,
    next_pause,
    paused_session,
    wait_ms,
)
from tests.unit.replication.fakes import RATE_LIMITED, UNREACHABLE, Clock, FakeServer, context_of

OPTIONS = SyncOptions()
FAILED = Verdict.UNREACHABLE.value
NOW = 1_000_000


def pause(left_ms: int, kind: str = FAILED) -> Pause:
    return Pause(1, 5000, NOW + left_ms, kind, "why", NOW)


@pytest.mark.parametrize(
    ("server", "session", "asked_only", "expected"),
    [
        (None, None, False, 0),
        (pause(300), None, False, 300),
        (pause(300), pause(700), False, 700),
        (pause(900), pause(700), False, 900),
        (pause(-1), None, False, 0),
        (pause(6000), None, False, 0),
        (pause(900), pause(700), True, 0),
        (pause(900), pause(700, BUSY), True, 700),
    ],
)
def test_the_longer_pause_counts(
    server: Pause | None, session: Pause | None, asked_only: bool, expected: int
) -> None:
    """Of the server's and the session's; if asked, of those that the server has asked for."""
    assert wait_ms(ActivePauses(server, session), NOW, asked_only=asked_only) == expected


@pytest.mark.parametrize(
    ("error", "others_asked", "expected"),
    [
        (UNREACHABLE, False, None),
        (RATE_LIMITED, False, "talk"),
        (RATE_LIMITED, True, None),
        (RemoteError(Verdict.DENIED, "no", scope=Scope.SESSION, status=403), True, "talk"),
    ],
)
def test_a_failure_pauses_its_session_or_the_server(
    error: RemoteError, others_asked: bool, expected: str | None
) -> None:
    """A second session at a rate limit shows that the limit is the server's."""
    assert paused_session(error, "talk", others_asked=others_asked) == expected


@pytest.mark.parametrize(
    ("status", "kind"), [(401, UNAUTHORIZED), (403, UNAUTHORIZED), (500, FAILED)]
)
def test_a_refused_key_has_a_kind_of_its_own(status: int, kind: str) -> None:
    """Status reports tell it from a server that is out of reach."""
    error = RemoteError(Verdict.UNREACHABLE, "why", status=status)
    assert next_pause(error, 0, OPTIONS, random.Random(1)).kind == kind


def test_pauses_grow_with_failures() -> None:
    """The longest of many draws grows with the failures in a row."""

    def longest(failures: int) -> float:
        chance = random.Random(1)
        draws = [next_pause(UNREACHABLE, failures, OPTIONS, chance) for _ in range(100)]
        return max(draw.seconds for draw in draws)

    assert longest(0) < longest(2) < longest(4)


@pytest.mark.parametrize(
    ("active", "expected"),
    [
        (ActivePauses(None, None), False),
        (ActivePauses(pause(500), None), True),
        (ActivePauses(None, pause(-500)), True),
        (ActivePauses(None, pause(500, BUSY)), False),
        (ActivePauses(None, pause(-500, BUSY)), True),
        (ActivePauses(pause(500), pause(500, BUSY)), True),
    ],
)
def test_a_success_ends_pauses_but_not_one_that_was_asked_for(
    active: ActivePauses, expected: bool
) -> None:
    """The server may have asked for it while the attempt was running."""
    assert ends_with_success(active, NOW) is expected


async def test_a_failure_is_recorded_and_a_success_ends_it() -> None:
    """Failures in a row are counted, and the pause is over after its time."""
    clock = Clock()
    pauses = context_of(FakeServer(), clock=clock).pauses
    assert await pauses.wait_ms("talk") == 0
    for _ in range(3):
        seconds = await pauses.record_failure("talk", UNREACHABLE)
    assert await pauses.is_server_paused()
    assert await pauses.wait_ms("talk") == await pauses.wait_ms("other") == int(seconds * 1000)
    clock.advance(seconds)
    assert await pauses.wait_ms("talk") == 0
    assert await pauses.is_server_paused()
    await pauses.record_success("other")
    assert not await pauses.is_server_paused()


async def test_the_second_session_at_a_rate_limit_pauses_the_server() -> None:
    """The first one pauses itself alone. A success ends neither before its time."""
    clock = Clock()
    pauses = context_of(FakeServer(), clock=clock).pauses
    await pauses.record_failure("a", RATE_LIMITED)
    await pauses.record_failure("a", RATE_LIMITED)
    assert await pauses.wait_ms("c") == 0
    await pauses.record_failure("b", RATE_LIMITED)
    assert await pauses.wait_ms("c", asked_only=True) > 0
    await pauses.record_success("c")
    assert await pauses.wait_ms("c") > 0
    clock.advance(OPTIONS.backoff_max)
    await pauses.record_success("c")
    assert not await pauses.is_server_paused()
