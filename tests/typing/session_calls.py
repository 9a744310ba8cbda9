"""A user's calls of `CachedSession`, with the types that they give."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

from agents import Agent, Runner, RunResult, SQLiteSession
from agents.items import TResponseInputItem
from agents.memory import Session
from dakera import AsyncDakeraClient
from typing_extensions import assert_type

from cached_session import (
    AuditReport,
    CachedSession,
    Change,
    Changes,
    Entry,
    ImportProgress,
    ImportReport,
    Parked,
    Progress,
    Recall,
    Status,
    SyncOptions,
    SyncReport,
    import_sqlite_session,
)


def show(progress: Progress) -> None:
    """Take the progress of a first read."""
    assert_type(progress.items, int)


async def make(client: AsyncDakeraClient) -> None:
    """Make sessions in every documented way."""
    assert_type(CachedSession("user-1"), CachedSession)
    CachedSession("user-1", journal="agent.db", client=client, pop="confirmed", content="none")
    CachedSession("user-1", key_prefix="shop")
    CachedSession("user-1", journal=Path("agent.db"), options=SyncOptions(durability="normal"))
    session = CachedSession.from_url(
        "user-1", url="http://localhost:3000", api_key="k", hydrate=False, on_progress=show
    )
    assert_type(session, CachedSession)
    async with session as entered:
        assert_type(entered, CachedSession)
    assert_type(await session.close(), None)


async def run_an_agent(agent: Agent[None], session: CachedSession) -> None:
    """Hand the session to the Agents SDK: it is one of its sessions."""
    theirs: Session = session
    result = await Runner.run(agent, "Hello", session=session)
    assert_type(result, RunResult)
    await Runner.run(agent, "Hello", session=theirs)


async def use_the_protocol(session: CachedSession) -> None:
    """Call what every session of the SDK has."""
    assert_type(session.session_id, str)
    assert_type(session.key_prefix, str)
    items = await session.get_items(limit=10)
    assert_type(items, list[TResponseInputItem])
    assert_type(await session.add_items(items), None)
    await session.add_items([{"role": "user", "content": "Hello"}])
    assert_type(await session.pop_item(), TResponseInputItem | None)
    assert_type(await session.clear_session(), None)


async def sync(session: CachedSession) -> None:
    """Sync, and ask how far it is."""
    assert_type(await session.sync(timeout=5), SyncReport)
    assert_type(await session.flush(), None)
    assert_type(await session.audit(), AuditReport)
    status = session.status()
    assert_type(status, Status)
    assert_type(status.pending, int)
    assert_type(status.last_error, str | None)
    parked = await session.parked()
    assert_type(parked, list[Parked])
    await session.retry_parked([one.dot for one in parked])
    assert_type(await session.drop_parked(*(one.dot for one in parked)), int)


async def look(session: CachedSession) -> None:
    """Read entries, search, and follow."""
    entries = await session.entries(limit=5)
    assert_type(entries, list[Entry])
    assert_type(entries[0].said_at, float)
    assert_type(await session.search("hello", limit=3), list[Entry])
    recall = await session.recall("hello")
    assert_type(recall, Recall)
    assert_type(recall.entries, list[Entry])
    changes = session.changes(seen=entries)
    assert_type(changes, Changes)
    async for change in changes:
        assert_type(change, Change)
        assert_type(change.operations, int)
    following: AsyncIterator[Change] = changes
    assert_type(await following.__anext__(), Change)


async def move(session: CachedSession, items: list[TResponseInputItem]) -> None:
    """Replace and import items."""
    assert_type(await session.replace_items(await session.entries(), items), None)

    def progress(done: ImportProgress) -> None:
        assert_type(done.total, int | None)

    report = await session.import_items(items, source="a file", on_progress=progress)
    assert_type(report, ImportReport)
    assert_type(await import_sqlite_session(session, "theirs.db"), ImportReport)
    theirs = SQLiteSession("user-1")
    await session.import_items(await theirs.get_items(), source="SQLiteSession")
