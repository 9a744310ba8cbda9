"""Fetching the pages of a listing."""

from __future__ import annotations

import pytest

from cached_session.remote.errors import RemoteError, Scope, Verdict
from cached_session.replication import listing
from cached_session.replication.listing import PageFetcher, fetch_page, may_retry
from cached_session.replication.listing_scan import PageRequest
from tests.unit.replication.fakes import RATE_LIMITED, SESSION, UNREACHABLE, FakeServer, context_of


def busy(retry_after: float | None) -> RemoteError:
    return RemoteError(Verdict.BUSY, "busy", scope=Scope.SESSION, retry_after=retry_after)


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between attempts, which take no time."""
    made: list[float] = []

    async def sleep(seconds: float) -> None:
        made.append(seconds)

    monkeypatch.setattr(listing.anyio, "sleep", sleep)
    return made


@pytest.mark.parametrize(
    ("error", "seconds", "retried"),
    [
        (UNREACHABLE, 0.5, True),
        (UNREACHABLE, 1.0, False),
        (busy(None), 9.0, True),
        (busy(5.0), 9.0, True),
        (busy(5.1), 0.0, False),
        (RemoteError(Verdict.DENIED, "no"), 0.0, False),
        (RemoteError(Verdict.REFUSED, "no"), 0.0, False),
    ],
)
def test_only_short_failures_are_retried(error: RemoteError, seconds: float, retried: bool) -> None:
    """A timeout has taken long enough, and a refusal does not change."""
    assert may_retry(error, seconds) is retried


async def test_a_page_is_fetched_again_after_a_failure(pauses: list[float]) -> None:
    """A long listing need not begin again."""
    server = FakeServer()
    server.rows = {"a": {"id": "a"}}
    server.failures["list"] = [UNREACHABLE, RATE_LIMITED]
    context = context_of(server)
    assert await fetch_page(context, SESSION, 0, 10) == [{"id": "a"}]
    assert server.requests == ["list"] * 3
    assert len(pauses) == 2


async def test_attempts_are_limited() -> None:
    """The last failure is the caller's."""
    server = FakeServer()
    server.failures["list"] = [UNREACHABLE] * 9
    with pytest.raises(RemoteError):
        await fetch_page(context_of(server), SESSION, 0, 10)
    assert server.requests == ["list"] * listing.TRIES


async def test_a_refusal_is_not_repeated() -> None:
    """It would be the same."""
    server = FakeServer()
    server.failures["list"] = [RemoteError(Verdict.DENIED, "no", status=403)]
    with pytest.raises(RemoteError):
        await fetch_page(context_of(server), SESSION, 0, 10)
    assert server.requests == ["list"]


async def test_the_first_page_gets_one_attempt() -> None:
    """It shows whether the server can be reached; the pages after it get more."""
    server = FakeServer()
    server.rows = {str(number): {"id": str(number)} for number in range(30)}
    server.failures["list"] = [UNREACHABLE, None, UNREACHABLE]
    fetcher = PageFetcher(context_of(server), SESSION)
    with pytest.raises(RemoteError):
        await fetcher.fetch(PageRequest(0, 10, 10))
    assert server.requests == ["list"]
    assert len((await fetcher.fetch(PageRequest(0, 10, 10))).ids) == 10
    assert len((await fetcher.fetch(PageRequest(10, 10, 10))).ids) == 10
    assert server.requests == ["list"] * 4
    await fetcher.aclose()


async def test_pages_are_requested_ahead_and_returned_in_order() -> None:
    """A page that was requested for another position is discarded."""
    server = FakeServer()
    server.rows = {str(number): {"id": str(number)} for number in range(100)}
    fetcher = PageFetcher(context_of(server), SESSION)
    first = await fetcher.fetch(PageRequest(0, 20, 20, 3))
    assert first.ids[0] == "99"
    second = await fetcher.fetch(PageRequest(10, 20, 20, 3))
    assert second.ids[0] == "89"
    other = await fetcher.fetch(PageRequest(50, 20, 20))
    assert other.ids[0] == "49"
    await fetcher.aclose()


async def test_nothing_is_requested_ahead_below_a_short_page() -> None:
    """The listing ends there, or nearly."""
    server = FakeServer()
    server.rows = {str(number): {"id": str(number)} for number in range(15)}
    fetcher = PageFetcher(context_of(server, parallel_requests=1), SESSION)
    page = await fetcher.fetch(PageRequest(0, 20, 20, 5))
    assert len(page.ids) == 15
    below = await fetcher.fetch(PageRequest(10, 20, 20, 5))
    assert len(below.ids) == 5
    await fetcher.aclose()
    assert server.requests == ["list"] * 2
