"""`SessionCache.compact`: the freed space, and the effect on other devices."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from cached_session import CachedSession, SessionCache, SessionClosed, SyncOptions
from cached_session.devserver import DevServer
from cached_session.journal import compaction
from cached_session.journal.journal import Journal


async def test_compact_shrinks_the_file(tmp_path: Path, server: DevServer) -> None:
    """The file shrinks by the size of the cleared items, as the report says."""
    path = tmp_path / "journal.db"
    async with SessionCache(path, url=server.url) as cache:
        session = cache.session("talk")
        for _ in range(20):
            await session.add_items([{"role": "user", "content": "x" * 50_000}])
        await session.clear_session()
        await session.add_items([{"role": "user", "content": "kept"}])
        await session.sync(10)
        report = await cache.compact()
        assert report.operations == 20
        assert report.free_bytes == 0
        assert report.bytes_after < report.bytes_before / 5
        assert path.stat().st_size == report.bytes_after
        assert await session.get_items() == [{"role": "user", "content": "kept"}]
        assert (await cache.compact()).operations == 0


async def test_compact_rebuilds_an_older_file(tmp_path: Path) -> None:
    """A journal whose free pages cannot be released incrementally is rebuilt once."""
    path = tmp_path / "journal.db"
    async with CachedSession("talk", journal=path) as session:
        await session.add_items([{"role": "user", "content": "x" * 500_000}])
        await session.clear_session()
    with closing(sqlite3.connect(path, isolation_level=None)) as older:
        # `auto_vacuum` is fixed by what the file was made with, and by a rebuild.
        older.execute("PRAGMA journal_mode = DELETE")
        older.execute("PRAGMA auto_vacuum = NONE")
        older.execute("VACUUM")
        older.execute("CREATE TABLE waste AS SELECT randomblob(500000)")
        older.execute("DROP TABLE waste")
    async with SessionCache(path) as cache:
        report = await cache.compact()
        assert report.bytes_after < report.bytes_before - 400_000
        assert report.free_bytes == 0


async def test_compact_changes_nothing_on_the_other_devices(
    tmp_path: Path, server: DevServer
) -> None:
    """A new device, and one that audits, have the same history as the device that compacted."""
    async with SessionCache(tmp_path / "a.db", url=server.url) as a:
        session = a.session("talk")
        for word in "abc":
            await session.add_items([{"role": "user", "content": word}])
        await session.sync(10)
        await session.clear_session()
        await session.add_items([{"role": "user", "content": "kept"}])
        await session.sync(10)
        assert (await a.compact()).operations == 3
        async with CachedSession.from_url("talk", url=server.url, journal=tmp_path / "b") as b:
            await b.sync(10)
            assert await b.get_items() == await session.get_items()
            assert b.status().absent == 0
        report = await session.audit()
        assert (report.healed, report.applied, report.forgotten) == (0, 0, 0)


async def test_the_background_compacts_by_itself(
    tmp_path: Path, server: DevServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that replicates removes what was cleared, without being asked."""
    tidied, tidy = asyncio.Event(), compaction.tidy

    async def observed(journal: Journal) -> None:
        await tidy(journal)
        tidied.set()

    monkeypatch.setattr(compaction, "tidy", observed)
    options = SyncOptions(prune_interval=0.05)
    async with SessionCache(tmp_path / "a.db", url=server.url, options=options) as cache:
        session = cache.session("talk")
        await session.add_items([{"role": "user", "content": "x" * 50_000}])
        await session.clear_session()
        await session.sync(10)
        kinds: list[tuple[str]] = []
        while kinds != [("clear",)]:  # the first runs may come before the acknowledgement
            tidied.clear()
            await tidied.wait()
            kinds = await cache._engine.journal.read(
                lambda conn: conn.execute("SELECT kind FROM ops").fetchall()
            )


async def test_compact_of_a_closed_cache_is_refused() -> None:
    """It raises `SessionClosed` like every other call."""
    cache = SessionCache(":memory:")
    await cache.close()
    with pytest.raises(SessionClosed):
        await cache.compact()
