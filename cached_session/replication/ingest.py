"""What the server has given: decoded, and into the journal.

What cannot be read is counted and left alone; it hides nothing beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from cached_session.history.ops import Dot
from cached_session.history.parts import Part
from cached_session.journal.tables import inbox
from cached_session.journal.tables.inbox import PageResult
from cached_session.remote.wire import Placeholder, Unreadable, decode
from cached_session.replication.context import Context, log
from cached_session.replication.results import PullResult
from cached_session.replication.tasks import SliceBudget

__all__ = ["Page", "apply_page", "read_page"]

LAST_SECOND = 1 << 40
"""No server's clock is beyond this; NaN and infinity are not below it."""
SLICE = 16
"""Memories decoded on the event loop at a time: some three hundred microseconds of work."""


@dataclass
class Page:
    """Memories of one listing page, or fetched by id, taken apart."""

    parts: list[Part] = field(default_factory=list)
    explained: list[Dot] = field(default_factory=list)
    unreadable: int = 0
    newest: int = 0
    oldest: int = 0
    ids: tuple[str, ...] = ()


async def read_page(memories: Sequence[dict[str, Any]], key: str) -> Page:
    """Take memories apart, on the event loop in slices; ``key`` is the session's."""
    page = Page(ids=tuple(str(memory.get("id")) for memory in memories))
    seconds = [second for memory in memories if (second := _second(memory)) is not None]
    page.newest, page.oldest = max(seconds, default=0), min(seconds, default=0)
    budget = SliceBudget(SLICE)
    for memory in memories:
        await budget.spend(1)
        try:
            found = decode(memory, key)
        except Unreadable as error:
            page.unreadable += 1
            log.debug("a memory cannot be read and is left alone: %s", error)
            continue
        if isinstance(found, Part):
            page.parts.append(found)
        elif isinstance(found, Placeholder):
            page.explained.append(found.dot)
    return page


async def apply_page(
    context: Context, session_id: str, page: Page, result: PullResult
) -> PageResult:
    """Apply what was read, in one transaction; what it brought is added to the result."""
    result.unreadable += page.unreadable
    if not page.parts and not page.explained:
        return PageResult()
    now = context.runtime.wall_ms()
    applied = await context.journal.write(
        lambda conn: inbox.apply_page(conn, session_id, page.parts, page.explained, now)
    )
    result.new += applied.new
    result.conflicts += applied.conflicts
    result.unreadable += applied.damaged
    return applied


def _second(memory: dict[str, Any]) -> int | None:
    """When the server says that it stored this; None if it says something that is no time."""
    created = memory.get("created_at")
    is_time = isinstance(created, (int, float)) and 0 <= created < LAST_SECOND
    return int(created) if is_time else None  # type: ignore[arg-type]
