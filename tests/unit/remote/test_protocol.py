from __future__ import annotations

from collections.abc import AsyncGenerator

from cached_session.remote.protocol import EventSource, GuardReport


class WithoutEvents:
    """A server that has no event stream."""


class WithEvents:
    """A server that has one."""

    async def events(self) -> AsyncGenerator[tuple[str, str] | None]:
        yield None


def test_an_event_source_is_found_by_its_method() -> None:
    """A remote without events is polled, and nobody asks it for a stream."""
    assert isinstance(WithEvents(), EventSource)
    assert not isinstance(WithoutEvents(), EventSource)


def test_a_guard_report_is_good_news_by_default() -> None:
    """An empty reason means that the policy protects the history."""
    assert GuardReport() == GuardReport("")
    assert GuardReport("no right to set it").unguarded
