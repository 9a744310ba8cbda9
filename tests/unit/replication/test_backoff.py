"""The seconds to wait after a failure."""

from __future__ import annotations

import random

import pytest

from cached_session import SyncOptions
from cached_session.remote.errors import RemoteError, Verdict
from cached_session.replication.backoff import LONGEST_ASKED, SHORTEST, exponential, pause_after

OPTIONS = SyncOptions()


def drawn(error: RemoteError, failures: int) -> list[float]:
    chance = random.Random(1)
    return [pause_after(error, failures, OPTIONS, chance) for _ in range(300)]


@pytest.mark.parametrize("failures", [0, 1, 3, 7, 40, 10_000])
@pytest.mark.parametrize(
    "verdict", [Verdict.UNREACHABLE, Verdict.BUSY, Verdict.ABSENT, Verdict.CONFLICT]
)
def test_back_off_has_full_jitter_and_bounds(verdict: Verdict, failures: int) -> None:
    """Pauses fill the range up to a ceiling that doubles with each failure, within both bounds."""
    ceiling = min(OPTIONS.backoff_max, OPTIONS.backoff_base * 2.0 ** min(failures, 100))
    pauses = drawn(RemoteError(verdict, "x"), failures)
    assert all(SHORTEST <= pause <= ceiling for pause in pauses)
    assert min(pauses) < ceiling * 0.15
    assert max(pauses) > ceiling * 0.85


@pytest.mark.parametrize("asked", [0.0, -5.0, 0.3, 7.0, 3600.0, 1e9])
@pytest.mark.parametrize("verdict", [Verdict.BUSY, Verdict.DENIED, Verdict.UNREACHABLE])
def test_the_time_that_a_server_asks_for_comes_first(verdict: Verdict, asked: float) -> None:
    """The pause has the length that the server asked for, up to an hour, and a tenth at most on
    top."""
    least = min(max(asked, SHORTEST), LONGEST_ASKED)
    for pause in drawn(RemoteError(verdict, "x", retry_after=asked), 9):
        assert least <= pause <= least * 1.1


def test_a_denied_request_is_tried_rarely() -> None:
    """The pause is between half of and the whole configured time, after any number of failures."""
    for failures in (0, 50):
        pauses = drawn(RemoteError(Verdict.DENIED, "x"), failures)
        assert all(OPTIONS.denied_retry / 2 <= pause <= OPTIONS.denied_retry for pause in pauses)


def test_exponential_back_off_never_spins() -> None:
    """A draw of zero gives the shortest pause."""

    class Zero(random.Random):
        def random(self) -> float:
            return 0.0

    assert exponential(5, OPTIONS, Zero()) == SHORTEST
