"""The size of store requests, learned from answers."""

from __future__ import annotations

import pytest

from cached_session import SyncOptions
from cached_session.remote.errors import RemoteError, Verdict
from cached_session.replication.batch_size import FIRST_BYTES, LEAST_BYTES, BatchLimits, BatchSize
from tests.unit.replication.fakes import RATE_LIMITED, UNREACHABLE

OPTIONS = SyncOptions()
TOO_LARGE = RemoteError(Verdict.REFUSED, "too large", status=413)


def test_the_first_request_is_small() -> None:
    """Nothing is known of the link: the request has a moderate size, or the configured maximum."""
    limits = BatchLimits(FIRST_BYTES, OPTIONS.max_batch_memories)
    assert BatchSize(OPTIONS).limits("talk") == limits
    assert BatchSize(SyncOptions(max_batch_bytes=20_000)).limits("talk").bytes == 20_000


def test_quick_answers_double_the_size_up_to_the_option() -> None:
    """Each full request that is answered quickly allows twice as much, never above the option."""
    size = BatchSize(OPTIONS)
    sizes = []
    for _ in range(6):
        sizes.append(size.limits("talk").bytes)
        size.answered("talk", sizes[-1], 10, 0.1)
    assert sizes[:2] == [FIRST_BYTES, 2 * FIRST_BYTES]
    assert sizes[-1] == OPTIONS.max_batch_bytes


def test_small_requests_change_nothing() -> None:
    """A small request shows nothing about large ones, answered quickly or not at all."""
    size = BatchSize(OPTIONS)
    size.answered("talk", 1000, 1, 0.1)
    size.failed("talk", 1000, 1, UNREACHABLE)
    assert size.limits("talk").bytes == FIRST_BYTES


def test_slow_answers_and_failures_halve_the_size() -> None:
    """An answer close to the timeout, and none at all, allow half as much, down to a minimum."""
    size = BatchSize(OPTIONS)
    size.answered("talk", FIRST_BYTES, 10, OPTIONS.request_timeout / 2)
    assert size.limits("talk").bytes == FIRST_BYTES // 2
    for _ in range(20):
        size.failed("talk", size.limits("talk").bytes, 10, UNREACHABLE)
    assert size.limits("talk").bytes == LEAST_BYTES


def test_an_answer_that_is_neither_quick_nor_slow_keeps_the_size() -> None:
    """The size stays between the two thresholds."""
    size = BatchSize(OPTIONS)
    size.answered("talk", FIRST_BYTES, 10, 3.0)
    assert size.limits("talk").bytes == FIRST_BYTES


def test_a_size_that_a_proxy_refuses_is_not_tried_again() -> None:
    """Quick answers do not lift a limit that was refused as too large."""
    size = BatchSize(OPTIONS)
    size.failed("talk", 100_000, 10, TOO_LARGE)
    for _ in range(5):
        size.answered("talk", size.limits("talk").bytes, 10, 0.1)
    assert size.limits("talk").bytes == 50_000


def test_a_rate_limit_halves_the_memories_of_one_session() -> None:
    """The next request has half the memories; those of other sessions are not affected."""
    size = BatchSize(OPTIONS)
    size.failed("talk", 1000, 40, RATE_LIMITED)
    assert size.limits("talk").memories == 20
    assert size.limits("other").memories == OPTIONS.max_batch_memories
    size.failed("talk", 10, 1, RATE_LIMITED)
    assert size.limits("talk").memories == 1


@pytest.mark.parametrize("start", [1, 16, 200])
def test_memories_grow_back_after_a_rate_limit(start: int) -> None:
    """Full requests that are taken allow more, until the limit is forgotten."""
    size = BatchSize(OPTIONS)
    size.failed("talk", 1000, 2 * start, RATE_LIMITED)
    allowed = [size.limits("talk").memories]
    while allowed[-1] < OPTIONS.max_batch_memories:
        size.answered("talk", 1000, allowed[-1] - 1, 0.1)
        assert size.limits("talk").memories == allowed[-1], "a smaller request shows nothing"
        size.answered("talk", 1000, allowed[-1], 0.1)
        allowed.append(size.limits("talk").memories)
        assert allowed[-1] > allowed[-2]
