"""Fetch missing operations by id, because a listing may never show them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from cached_session.history.parts import Part
from cached_session.history.session_ref import SessionRef
from cached_session.journal.tables.gaps import Gap, Search
from cached_session.remote.ids import READABLE_VERSIONS, memory_id, placeholder_id
from cached_session.remote.wire import Unreadable, decode
from cached_session.replication.context import Context
from cached_session.replication.gap_search import FETCHES_PER_SEARCH, PartSearch, search_delay_ms
from cached_session.replication.ingest import apply_page, read_page
from cached_session.replication.results import PullResult
from cached_session.replication.tasks import run_each

__all__ = ["fill_gaps", "search_gaps"]

GAPS_PER_PULL = 200
"""The maximum number of gaps for which one pull searches. The gaps that are longest overdue are
searched for first."""


async def fill_gaps(context: Context, session: SessionRef) -> PullResult:
    """Search for every gap of a session.

    Raises:
        RemoteError: the first failure. Operations that the other searches find are applied.
    """
    async with context.lock("pull", session.name):
        result = PullResult()
        await search_gaps(context, session, result, all_gaps=True)
        return result


async def search_gaps(
    context: Context, session: SessionRef, result: PullResult, *, all_gaps: bool
) -> None:
    """Search for the gaps that are due. The caller holds the pull lock.

    Args:
        all_gaps: search for every gap, also for gaps that are not due.

    Raises:
        RemoteError: the first failure. Operations that the other searches find are applied.
    """
    gaps, now = context.journal.gaps, context.now_ms()
    if not await gaps.refresh(session, now):
        return
    due = await gaps.due(
        session,
        now,
        GAPS_PER_PULL,
        longest_ms=int(1000 * context.options.poll_interval_idle),
        everything=all_gaps,
    )
    if not due:
        return
    searches = _Searches(context, session, result, now)
    failure = await run_each(searches.search, due, context.options.parallel_requests)
    await searches.apply()
    await gaps.record(session, searches.done)
    if failure is not None:
        raise failure


@dataclass
class _Searches:
    """The searches of one pull, and the memories that they have found."""

    context: Context
    session: SessionRef
    result: PullResult
    now_ms: int
    done: list[Search] = field(default_factory=list)
    _found: list[dict[str, Any]] = field(default_factory=list)

    async def search(self, gap: Gap) -> None:
        """Fetch the parts of one gap that the server has, and plan the next search for it."""
        memories, is_explained = await _fetch_operation(self.context, self.session, gap)
        self._found.extend(memories)
        delay = search_delay_ms(self.context.options, gap, len(memories))
        # If the operation is complete, `apply` deletes the gap, and this record changes no row.
        self.done.append(Search(gap.dot, self.now_ms + delay, is_explained))
        if len(self._found) >= FETCHES_PER_SEARCH:
            await self.apply()

    async def apply(self) -> None:
        """Apply the memories found so far."""
        found, self._found = self._found, []
        page = await read_page(found, self.session.key)
        await apply_page(self.context, self.session, page, self.result)


async def _fetch_operation(
    context: Context, session: SessionRef, gap: Gap
) -> tuple[list[dict[str, Any]], bool]:
    """Fetch the memories that the server has of one missing operation.

    The wire version of the operation is unknown, and a forged memory may claim any version. So
    search under the ids of each version until one search finds every part.

    Returns:
        The memories, and whether the server has a placeholder for the operation.
    """
    memories: list[dict[str, Any]] = []
    for version in READABLE_VERSIONS:
        found, needs_placeholder = await _fetch_parts(context, session, gap, version)
        memories.extend(found)
        if not needs_placeholder:
            return memories, False
    for version in READABLE_VERSIONS:
        identity = placeholder_id(session.key, gap.dot, version)
        if await context.remote.fetch(session.agent, identity) is not None:
            return memories, True
    return memories, False


async def _fetch_parts(
    context: Context, session: SessionRef, gap: Gap, version: int
) -> tuple[list[dict[str, Any]], bool]:
    """Fetch the missing parts of an operation that have the ids of one wire version.

    Returns:
        The memories, and whether the caller should search for a placeholder.
    """
    search = PartSearch(gap)
    memories: list[dict[str, Any]] = []
    while search.request is not None:
        identity = memory_id(session.key, gap.dot, *search.request, version)
        memory = await context.remote.fetch(session.agent, identity)
        part = _decode_part(memory, session.key)
        if memory is not None and part is not None:
            memories.append(memory)
        search.receive(part)
    return memories, search.needs_placeholder


def _decode_part(memory: dict[str, Any] | None, key: str) -> Part | None:
    try:
        decoded = decode(memory, key) if memory is not None else None
    except Unreadable:
        return None
    return decoded if isinstance(decoded, Part) else None
