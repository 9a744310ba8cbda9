"""Import of items that are stored on a Dakera server, from the server itself or from its export.

As in `file_import`, an import is idempotent and can be resumed, memory use is bounded, and the
event loop is not blocked.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from cached_session.engine import network_calls
from cached_session.engine.engine import Engine
from cached_session.errors import InvalidArgument, SyncError
from cached_session.history.ids import session_key
from cached_session.history.ops import Dot
from cached_session.history.parts import Part
from cached_session.history.session_ref import SessionRef
from cached_session.journal.journal import shielded
from cached_session.models import ImportReport
from cached_session.moving.direct_items import DirectItems
from cached_session.moving.file_import import OnProgress, import_rows
from cached_session.moving.jsonl import read_memories
from cached_session.remote.ids import version_of
from cached_session.remote.wire import Placeholder, Unreadable, decode
from cached_session.session import CachedSession, name_of, open_engine

__all__ = ["import_dakera_export", "import_dakera_session"]

PAGE_MEMORIES = 500
"""Number of memories in a page of a listing, and in a batch of an export."""
LARGEST_PAGE = 1000
"""Maximum number of memories in a page that a server returns."""
PASSES = 5
"""Maximum number of times that a listing is read. Memories that are stored during a reading shift
the pages, so the reading can miss memories. So the listing is read again until no new item is
found."""

Memory = dict[str, Any]


async def import_dakera_session(
    session: CachedSession,
    agent_id: str,
    *,
    on_progress: OnProgress | None = None,
) -> ImportReport:
    """Add the items of a direct session on the server that ``session`` syncs with.

    A direct session is one whose program stores items on the server without this library: each item
    is a memory, with the item's JSON as the content and its number as ``seq`` in the metadata. The
    memories on the server are not changed.

    Args:
        session: the session that gets the items.
        agent_id: the namespace of the direct session: prefix, colon and session id, such as
            ``agents:session:user-123``.
        on_progress: called after each batch. An exception from it ends the import after that batch.

    Raises:
        Unauthorized, SyncError: there is no server, the request failed, or the server is too old to
            list more than the newest memories. In the last case, import its export instead.
        InvalidArgument: ``agent_id`` is empty, or the beginning of the history has changed since an
            earlier import.
        SessionClosed, JournalError: as `CachedSession.add_items`.
    """
    if not agent_id:
        raise InvalidArgument(f"agent_id={agent_id!r} must name the namespace to import from")
    engine = await open_engine(session)
    items = DirectItems()
    skipped: set[str] = set()
    try:
        for _ in range(PASSES):
            before = len(items)
            async for page in _list_pages(engine, agent_id):
                skipped |= await _in_thread(engine, _add_items, items, page)
            if len(items) == before:
                break
        report = await _import_items(session, items, on_progress)
        return replace(report, skipped=len(skipped))
    finally:
        items.close()


async def import_dakera_export(
    session: CachedSession,
    path: str | os.PathLike[str],
    *,
    on_progress: OnProgress | None = None,
) -> ImportReport:
    """Add the items in a Dakera export (``GET /v1/export?format=jsonl``) to a session.

    Two kinds of memories are imported. Memories of this library for this session are applied as if
    the server had listed them, including their order, pops and clears. Items of a direct session
    (see `import_dakera_session`) are appended in the order of their ``seq``. All other memories are
    skipped and counted.

    Raises:
        InvalidArgument: the file cannot be read, or the beginning of the direct session's history
            has changed since an earlier import.
        SessionClosed, JournalError: as `CachedSession.add_items`.
    """
    engine = await open_engine(session)
    before = session.status().items
    items = DirectItems()
    unreadable = skipped = 0
    try:
        memories = read_memories(path)
        key = session_key(name_of(session))
        while batch := await _in_thread(engine, _read_batch, memories, items, key):
            unreadable += batch.unreadable
            skipped += batch.skipped
            if batch.parts or batch.explained:
                await _apply(engine, name_of(session), batch)
        applied = session.status().items - before
        report = await _import_items(session, items, on_progress)
    finally:
        items.close()
    return replace(
        report,
        added=report.added + max(0, applied),
        unreadable=report.unreadable + unreadable,
        skipped=skipped,
    )


async def _in_thread(engine: Engine, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a thread.

    A cancelled caller waits until the function has ended, because the caller then closes objects
    that the function uses.
    """
    return await shielded(asyncio.ensure_future(engine.journal.offload(function, *arguments)))


async def _import_items(
    session: CachedSession, items: DirectItems, on_progress: OnProgress | None
) -> ImportReport:
    # Both imports have the same source name, so that items from the server are not imported again
    # from its export.
    report = await import_rows(session, "dakera", items.rows(), len(items), on_progress)
    return replace(report, first_unreadable=None)  # the memories have no position that a user knows


# -- the listing of a namespace ------------------------------------------------------------------


def _add_items(items: DirectItems, page: list[Memory]) -> set[str]:
    """Add the items of a page; return the ids of the memories that are not items."""
    return {str(memory.get("id")) for memory in page if not items.add(memory)}


async def _list_pages(engine: Engine, agent_id: str) -> AsyncIterator[list[Memory]]:
    """Yield all pages of a namespace, newest first.

    Raises:
        SyncError: the server ignores offsets, and the namespace has more memories than one page.
    """
    offset, limit, first_id = 0, PAGE_MEMORIES, None
    while page := await network_calls.listing(engine, agent_id, offset, limit):
        if offset and page[0].get("id") == first_id:
            # Another offset returned an identical page, so the server ignores offsets. Request the
            # largest page.
            if len(page) < limit:
                return
            if limit < LARGEST_PAGE:
                offset, limit = 0, LARGEST_PAGE
                continue
            raise SyncError(
                f"{agent_id!r} has more than the {LARGEST_PAGE} memories that this server lists; "
                "nothing was added. Import its export instead (import_dakera_export)"
            )
        yield page
        first_id = page[0].get("id")
        offset += len(page)


# -- an export -----------------------------------------------------------------------------------


@dataclass
class _Batch:
    """Memories of an export, grouped by kind, without the items of a direct session."""

    parts: list[Part] = field(default_factory=list)
    explained: list[Dot] = field(default_factory=list)
    unreadable: int = 0
    skipped: int = 0

    def add(self, memory: Memory, key: str) -> None:
        """Decode a memory of this library and add it."""
        try:
            decoded = decode(memory, key)
        except Unreadable:
            self.unreadable += 1
            return
        if isinstance(decoded, Part):
            self.parts.append(decoded)
        elif isinstance(decoded, Placeholder):
            self.explained.append(decoded.dot)
        else:
            self.skipped += 1


def _read_batch(memories: Iterator[Memory | None], items: DirectItems, key: str) -> _Batch | None:
    """Read the next memories: items of a direct session into ``items``, others into the batch.

    Return None at the end of the export.
    """
    batch = None
    for memory in islice(memories, PAGE_MEMORIES):
        batch = batch or _Batch()
        if memory is None:
            batch.unreadable += 1
        elif version_of(memory.get("id")) is not None:
            batch.add(memory, key)
        elif not items.add(memory):
            batch.skipped += 1
    return batch


async def _apply(engine: Engine, name: str, batch: _Batch) -> None:
    now = engine.runtime.wall_ms()
    session = SessionRef.of(name)
    await engine.journal.inbox.apply(session, batch.parts, batch.explained, now)
