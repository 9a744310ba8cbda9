"""A user's calls of `SessionCache`, and of the functions beside it."""

from __future__ import annotations

from pathlib import Path

from typing_extensions import assert_type

from cached_session import (
    CachedSession,
    CompactReport,
    Finding,
    SessionCache,
    SessionInfo,
    Status,
    SyncOptions,
    SyncReport,
    diagnose,
    export_jsonl,
    sqlite_sessions,
)


async def use(path: Path) -> None:
    """Make sessions of one journal, and look after all of them."""
    options = SyncOptions(max_pending_items=1000, when_full="reject", listen=False)
    assert_type(options.max_pending_items, int | None)
    async with SessionCache(path, url="http://localhost:3000", options=options) as cache:
        assert_type(cache, SessionCache)
        session = cache.session("user-1", pop="confirmed")
        assert_type(session, CachedSession)
        assert_type(await cache.sessions(), list[SessionInfo])
        assert_type(await cache.sync(), SyncReport)
        assert_type(await cache.flush(timeout=1.5), None)
        assert_type(await cache.compact(), CompactReport)
        status = cache.status()
        assert_type(cache.journal_status().prefixes["shop"], Status)
        assert_type(status, Status)
        for name, one in status.sessions.items():
            assert_type(name, str)
            assert_type(one, Status)
        assert_type(await export_jsonl(session, path), int)
    assert_type(sqlite_sessions(path), list[str])
    assert_type(await diagnose(path, url=None), list[Finding])
