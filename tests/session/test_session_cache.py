"""`SessionCache`, and what objects over one journal share in a process."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from dakera import AsyncDakeraClient

from cached_session import CachedSession, InvalidArgument, SessionCache, SessionClosed, SyncOptions
from cached_session.devserver import DevServer
from cached_session.journal.journal import MEMORY
from tests.session.session_support import (
    journal_threads,
    open_files,
    replicators,
    said,
    server_connections,
    words,
)


async def test_a_cache_keeps_many_sessions_apart(place: str) -> None:
    """A hundred sessions written at once are a hundred histories."""
    async with SessionCache(place) as cache:
        sessions = [cache.session(f"user-{n}") for n in range(100)]
        await asyncio.gather(*(s.add_items(said(s.session_id, "x")) for s in sessions))
        for session in sessions:
            assert words(await session.get_items()) == [session.session_id, "x"]
        assert len(journal_threads()) == 1


async def test_a_cache_names_every_session_of_its_journal(journal: Path) -> None:
    """Those of earlier runs and those nobody has open, in the order of their first word."""
    async with CachedSession("before", journal=journal) as session:
        await session.add_items(said("a"))
    async with SessionCache(journal) as cache:
        await cache.session("odd \ud800 '\x00").add_items(said("b"))
        cache.session("silent")
        assert await cache.sessions() == ["before", "odd \ud800 '\x00"]


async def test_a_status_counts_all_and_each(place: str) -> None:
    """It is no coroutine, sums up the journal, and has each session under its id."""
    async with SessionCache(place) as cache:
        await cache.session("a").add_items(said(1, 2))
        await cache.session("b").add_items(said(3))
        await cache.session("b").pop_item()
        status = cache.status()
        assert (status.state, status.items, status.pending, status.parked) == ("local", 2, 3, 0)
        assert status.server is None
        assert {name: s.items for name, s in status.sessions.items()} == {"a": 2, "b": 0}
        assert {name: s.pending for name, s in status.sessions.items()} == {"a": 1, "b": 2}
        assert status.oldest_pending_age is not None


async def test_a_status_of_many_sessions_is_each_ones_own_for_as_many_questions() -> None:
    """Each session's status among the others is the one that it tells itself; the journal is asked
    no more often for three hundred than for three: the event loop waits for it meanwhile."""
    asked: list[str] = []
    questions = []
    async with SessionCache(MEMORY) as cache:

        def note(conn: sqlite3.Connection) -> None:
            conn.set_trace_callback(asked.append)

        for most in (3, 300):
            for number in range(most):
                session = cache.session(f"{number}")
                await session.add_items(said(*range(number % 7)))
                if number % 5 == 0:
                    await session.pop_item()
                if number % 11 == 0:
                    await session.clear_session()
            await cache._engine.journal.write(note)
            asked.clear()
            status = cache.status()
            questions.append(len(asked))
            assert len(status.sessions) > most * 0.8 - 1
            for name, one in status.sessions.items():
                own = cache.session(name).status()
                assert replace(one, oldest_pending_age=0.0) == replace(own, oldest_pending_age=0.0)
            assert status.items == sum(one.items for one in status.sessions.values())
            assert status.pending == sum(one.pending for one in status.sessions.values())
    assert questions[0] == questions[1] > 3


async def test_a_status_can_be_had_before_the_first_call(journal: Path) -> None:
    """It opens the journal by itself; an empty one has nothing."""
    cache = SessionCache(journal)
    assert cache.status().items == 0
    assert cache.status().sessions == {}
    await cache.close()
    assert cache.status().state == "closed"


def test_a_status_needs_no_event_loop(journal: Path) -> None:
    """A program's other threads may ask as well."""
    session = CachedSession("s", journal=journal)
    asyncio.run(session.add_items(said("a")))
    found = []
    thread = threading.Thread(target=lambda: found.append(session.status().items))
    thread.start()
    thread.join()
    assert found == [session.status().items] == [1]
    asyncio.run(session.close())


async def test_closing_a_cache_closes_its_sessions(place: str) -> None:
    """Each of them says so at its next call."""
    cache = SessionCache(place)
    one, other = cache.session("a"), cache.session("b")
    await one.add_items(said("a"))
    await cache.close()
    await cache.close()
    for session in (one, other):
        with pytest.raises(SessionClosed):
            await session.get_items()
        assert session.status().state == "closed"


async def test_a_closed_cache_gives_nothing(place: str) -> None:
    """Every call raises SessionClosed and names the way out."""
    cache = SessionCache(place)
    await cache.close()
    with pytest.raises(SessionClosed, match="new SessionCache"):
        cache.session("s")
    for call in (cache.sessions, cache.sync, cache.flush, cache.__aenter__):
        with pytest.raises(SessionClosed, match="new SessionCache"):
            await call()


async def test_a_session_of_a_cache_may_be_closed_alone(place: str) -> None:
    """The cache, its other sessions and a new one of the same id go on."""
    async with SessionCache(place) as cache:
        one, other = cache.session("s"), cache.session("s")
        await one.add_items(said("a"))
        await one.close()
        await one.close()
        with pytest.raises(SessionClosed):
            await one.get_items()
        assert words(await other.get_items()) == ["a"]
        assert words(await cache.session("s").get_items()) == ["a"]


async def test_a_session_of_a_cache_takes_its_own_keywords(place: str) -> None:
    """Settings and modes are the session's; what makes no sense is refused as everywhere."""
    async with SessionCache(place) as cache:
        session = cache.session("s", session_settings={"limit": 1})
        await session.add_items(said("a", "b"))
        assert words(await session.get_items()) == ["b"]
        for bad in ({"pop": "x"}, {"content": "x"}, {"hydrate": 1}):
            with pytest.raises(InvalidArgument):
                cache.session("s", **bad)
        with pytest.raises(InvalidArgument):
            cache.session("")


# -- one journal, several objects ----------------------------------------------------------------


async def test_objects_over_one_file_share_what_is_underneath(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However the file is named: one writing thread, and each reads the other's words at once."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link.db").symlink_to("agent.db")
    (tmp_path / "real").mkdir()
    (tmp_path / "sub").symlink_to(".", target_is_directory=True)
    before = journal_threads()
    names = [
        "agent.db",
        "./real/../agent.db",
        str(tmp_path / "agent.db"),
        "link.db",
        "sub/agent.db",
    ]
    sessions = [CachedSession("s", journal=name) for name in names]
    for number, session in enumerate(sessions):
        await session.add_items(said(number))
    for session in sessions:
        assert words(await session.get_items()) == [str(n) for n in range(len(names))]
    assert len(journal_threads() - before) == 1
    for session in sessions[1:]:
        await session.close()
        await sessions[0].add_items(said("on"))
    assert len(await sessions[0].get_items()) == 2 * len(names) - 1
    assert len(journal_threads() - before) == 1
    await sessions[0].close()
    assert journal_threads() == before


async def test_a_relative_path_is_the_file_it_was_when_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Changing the directory afterwards moves nothing, before the first call or later."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    monkeypatch.chdir(here)
    session = CachedSession("s", journal="agent.db")
    monkeypatch.chdir(there)
    await session.add_items(said("a"))
    await session.entries()
    await session.close()
    assert list(there.iterdir()) == []
    monkeypatch.chdir(here)
    async with CachedSession("s", journal="agent.db") as again:
        assert words(await again.get_items()) == ["a"]


async def test_a_cache_and_a_session_share_a_journal(journal: Path) -> None:
    """Closing the cache leaves the session that was made without it."""
    cache = SessionCache(journal)
    inside, outside = cache.session("s"), CachedSession("s", journal=journal)
    await inside.add_items(said("a"))
    await cache.close()
    assert words(await outside.get_items()) == ["a"]
    await outside.close()


async def test_whose_options_hold_is_said(journal: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A journal has one connection in a process, and one durability: of who asks for another one
    later, the log tells, and who asks for the same is left in peace."""
    quick = SyncOptions(durability="normal")
    async with CachedSession("a", journal=journal, options=quick):
        async with SessionCache(journal, options=SyncOptions(durability="normal")):
            assert not caplog.records
        async with SessionCache(journal) as cache:
            assert [record.levelname for record in caplog.records] == ["WARNING"]
            assert "other options" in caplog.text
            assert cache._engine.options == quick


async def test_a_journal_may_be_opened_again_while_it_closes(journal: Path) -> None:
    """A new session does not wait for the old one's close, and loses nothing."""
    session = CachedSession("s", journal=journal)
    await session.add_items(said(0))
    for number in range(1, 20):
        closing = asyncio.ensure_future(session.close())
        await asyncio.sleep(0)
        session = CachedSession("s", journal=journal)
        await session.add_items(said(number))
        await closing
    assert words(await session.get_items()) == [str(n) for n in range(20)]
    await session.close()


# -- nothing is left -----------------------------------------------------------------------------


async def test_the_last_close_leaves_nothing(journal: Path, server: DevServer) -> None:
    """No task, no thread of ours, no open file, no connection, no lock: as if never opened."""
    threads, tasks = journal_threads(), asyncio.all_tasks()
    cache = SessionCache(journal, url=server.url)
    sessions = [cache.session(f"user-{n}") for n in range(5)]
    for session in sessions:
        await session.add_items(said(*range(300)))
        await session.get_items()
        await session.entries()
    await cache.sync(timeout=60)
    outside = CachedSession.from_url("more", url=server.url, journal=journal)
    await outside.get_items()
    assert len(replicators()) == 1
    await cache.close()
    assert len(replicators()) == 1
    assert len(journal_threads() - threads) == 1
    await outside.close()
    assert asyncio.all_tasks() == tasks
    assert journal_threads() == threads
    assert open_files(journal.parent) == []
    assert not Path(f"{journal}-wal").exists()
    assert server_connections(server) == 0


async def test_an_injected_client_stays_its_owners(journal: Path, server: DevServer) -> None:
    """Closing every session leaves the client open and working."""
    async with AsyncDakeraClient(server.url, max_retries=1, timeout=60) as client:
        cache = SessionCache(journal, client=client)
        one, other = cache.session("a"), cache.session("b")
        await one.add_items(said("a"))
        await one.close()
        await other.add_items(said("b"))
        await cache.flush(timeout=60)
        await cache.close()
        assert replicators() == set()
        again = CachedSession("a", client=client, journal=":memory:")
        await again.sync(timeout=60)
        assert words(await again.get_items()) == ["a"]
        await again.close()


async def test_the_last_session_with_a_server_ends_the_replicator(
    journal: Path, server: DevServer
) -> None:
    """A local session over the same journal goes on without it."""
    local = CachedSession("s", journal=journal)
    synced = CachedSession.from_url("s", url=server.url, journal=journal)
    await local.add_items(said("a"))
    await synced.flush(timeout=60)
    await synced.close()
    assert replicators() == set()
    await local.add_items(said("b"))
    assert words(await local.get_items()) == ["a", "b"]
    await local.close()


async def test_a_close_waits_for_words_that_can_leave(journal: Path, server: DevServer) -> None:
    """What was written just before a close is on the server after it."""
    options = SyncOptions(close_timeout=60.0)
    async with SessionCache(journal, url=server.url, options=options) as cache:
        for number in range(3):
            await cache.session(f"user-{number}").add_items(said(number))
    async with SessionCache(journal) as cache:
        assert cache.status().pending == 0
    async with SessionCache(":memory:", url=server.url) as elsewhere:
        for number in range(3):
            session = elsewhere.session(f"user-{number}")
            await session.sync(timeout=60)
            assert words(await session.get_items()) == [str(number)]


async def test_a_close_with_the_server_gone_keeps_the_words(journal: Path) -> None:
    """Nothing is lost, and nothing is left running."""
    cache = SessionCache(journal, url="http://127.0.0.1:9")
    session = cache.session("s")
    await session.add_items(said("a"))
    assert words(await session.get_items()) == ["a"]
    await cache.close()
    assert replicators() == set()
    async with SessionCache(journal) as again:
        assert again.status().pending == 1
        assert words(await again.session("s").get_items()) == ["a"]
