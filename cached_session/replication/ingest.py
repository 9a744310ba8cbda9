"""Decode memories from the server, and apply them to the journal.

A memory that cannot be decoded is counted and skipped. The other memories are applied.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cached_session.history.parts import Part
from cached_session.history.session_ref import SessionRef
from cached_session.journal.tables.inbox import PageResult
from cached_session.remote.wire import Placeholder, Unreadable, decode
from cached_session.replication.context import Context, log
from cached_session.replication.listing_scan import Page
from cached_session.replication.results import PullResult
from cached_session.replication.tasks import SliceBudget

__all__ = ["apply_page", "read_page"]

LATEST_SECOND = 1 << 40
"""The limit in Unix seconds below which a storage time is valid. The limit also excludes NaN and
infinity."""
SLICE = 16
"""The number of memories that are decoded on the event loop at a time: about 300 microseconds of
work."""


async def read_page(memories: Sequence[dict[str, Any]], key: str) -> Page:
    """Decode memories in slices, so that they do not block the event loop.

    Args:
        key: the key of the session.
    """
    page = Page(ids=tuple(str(memory.get("id")) for memory in memories))
    seconds = [second for memory in memories if (second := stored_second(memory)) is not None]
    page.newest, page.oldest = max(seconds, default=0), min(seconds, default=0)
    budget = SliceBudget(SLICE)
    for memory in memories:
        await budget.spend(1)
        try:
            found = decode(memory, key)
        except Unreadable as error:
            page.unreadable += 1
            log.debug("skipped a memory that cannot be read: %s", error)
            continue
        if isinstance(found, Part):
            page.parts.append(found)
        elif isinstance(found, Placeholder):
            page.explained.append(found.dot)
    return page


async def apply_page(
    context: Context, session: SessionRef, page: Page, result: PullResult
) -> PageResult:
    """Apply a page in one transaction, and add its counts to the result of the pull."""
    result.unreadable += page.unreadable
    if not page.is_ours:
        return PageResult()
    now = context.runtime.wall_ms()
    applied = await context.journal.inbox.apply(session, page.parts, page.explained, now)
    result.new += applied.new
    result.conflicts += applied.conflicts
    result.unreadable += applied.damaged
    return applied


def stored_second(memory: dict[str, Any]) -> int | None:
    """Return the Unix second at which the server stored a memory; None if it has no valid time."""
    created = memory.get("created_at")
    is_time = isinstance(created, (int, float)) and 0 <= created < LATEST_SECOND
    return int(created) if is_time else None  # type: ignore[arg-type]
