"""`SessionCache`, and the resources that objects over one journal share in a process."""

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
    contents,
    journal_threads,
    messages,
    open_files,
    replicators,
    server_connections,
)


async def test_a_cache_keeps_many_sessions_apart(place: str) -> None:
    """A hundred sessions that are written concurrently have a hundred separate histories."""
    async with SessionCache(place) as cache:
        sessions = [cache.session(f"user-{n}") for n in range(100)]
        await asyncio.gather(*(s.add_items(messages(s.session_id, "x")) for s in sessions))
        for session in sessions:
            assert contents(await session.get_items()) == [session.session_id, "x"]
        assert len(journal_threads()) == 1


async def test_a_cache_names_every_session_of_its_journal(journal: Path) -> None:
    """`sessions` lists sessions of earlier runs and unopened ones, in the order of their first
    item."""
    async with CachedSession("before", journal=journal) as session:
        await session.add_items(messages("a"))
    async with SessionCache(journal) as cache:
        await cache.session("odd \ud800 '\x00").add_items(messages("b"))
        cache.session("silent")
        found = {info.session_id for info in await cache.sessions()}
        assert found == {"before", "odd \ud800 '\x00"}


async def test_a_status_has_totals_and_each_session(place: str) -> None:
    """`status` is a plain function that returns the journal's totals and each session by its id."""
    async with SessionCache(place) as cache:
        await cache.session("a").add_items(messages(1, 2))
        await cache.session("b").add_items(messages(3))
        await cache.session("b").pop_item()
        status = cache.status()
        assert (status.state, status.items, status.pending, status.parked) == ("local", 2, 3, 0)
        assert status.server is None
        assert {name: s.items for name, s in status.sessions.items()} == {"a": 2, "b": 0}
        assert {name: s.pending for name, s in status.sessions.items()} == {"a": 1, "b": 2}
        assert status.oldest_pending_age is not None


async def test_a_status_of_many_sessions_needs_a_constant_number_of_queries() -> None:
    """Each session's entry equals its own status, and 300 sessions need no more queries than three,
    because the event loop waits for them."""
    asked: list[str] = []
    questions = []
    async with SessionCache(MEMORY) as cache:

        def note(conn: sqlite3.Connection) -> None:
            conn.set_trace_callback(asked.append)

        for most in (3, 300):
            for number in range(most):
                session = cache.session(f"{number}")
                await session.add_items(messages(*range(number % 7)))
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


async def test_a_status_opens_the_journal(journal: Path) -> None:
    """A status needs no earlier call, and an empty journal has a status of zeros."""
    cache = SessionCache(journal)
    assert cache.status().items == 0
    assert cache.status().sessions == {}
    await cache.close()
    assert cache.status().state == "closed"


def test_a_status_needs_no_event_loop(journal: Path) -> None:
    """Other threads of a program can call `status`."""
    session = CachedSession("s", journal=journal)
    asyncio.run(session.add_items(messages("a")))
    found = []
    thread = threading.Thread(target=lambda: found.append(session.status().items))
    thread.start()
    thread.join()
    assert found == [session.status().items] == [1]
    asyncio.run(session.close())


async def test_closing_a_cache_closes_its_sessions(place: str) -> None:
    """The next call of each session raises `SessionClosed`."""
    cache = SessionCache(place)
    one, other = cache.session("a"), cache.session("b")
    await one.add_items(messages("a"))
    await cache.close()
    await cache.close()
    for session in (one, other):
        with pytest.raises(SessionClosed):
            await session.get_items()
        assert session.status().state == "closed"


async def test_a_closed_cache_refuses_every_call(place: str) -> None:
    """Every call raises `SessionClosed` and names the remedy."""
    cache = SessionCache(place)
    await cache.close()
    with pytest.raises(SessionClosed, match="new SessionCache"):
        cache.session("s")
    for call in (cache.sessions, cache.sync, cache.flush, cache.__aenter__):
        with pytest.raises(SessionClosed, match="new SessionCache"):
            await call()


async def test_a_session_of_a_cache_may_be_closed_alone(place: str) -> None:
    """The cache, its other sessions and a new session of the same id keep working."""
    async with SessionCache(place) as cache:
        one, other = cache.session("s"), cache.session("s")
        await one.add_items(messages("a"))
        await one.close()
        await one.close()
        with pytest.raises(SessionClosed):
            await one.get_items()
        assert contents(await other.get_items()) == ["a"]
        assert contents(await cache.session("s").get_items()) == ["a"]


async def test_a_session_of_a_cache_takes_its_own_keywords(place: str) -> None:
    """Settings and modes belong to the session, and invalid ones are refused."""
    async with SessionCache(place) as cache:
        session = cache.session("s", session_settings={"limit": 1})
        await session.add_items(messages("a", "b"))
        assert contents(await session.get_items()) == ["b"]
        for bad in ({"pop": "x"}, {"content": "x"}, {"hydrate": 1}):
            with pytest.raises(InvalidArgument):
                cache.session("s", **bad)
        with pytest.raises(InvalidArgument):
            cache.session("")


# -- several objects over one journal --------------------------------------------------------------


async def test_objects_over_one_file_share_their_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Different spellings of a path share one writing thread, and each object reads the others'
    items."""
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
        await session.add_items(messages(number))
    for session in sessions:
        assert contents(await session.get_items()) == [str(n) for n in range(len(names))]
    assert len(journal_threads() - before) == 1
    for session in sessions[1:]:
        await session.close()
        await sessions[0].add_items(messages("on"))
    assert len(await sessions[0].get_items()) == 2 * len(names) - 1
    assert len(journal_threads() - before) == 1
    await sessions[0].close()
    assert journal_threads() == before


async def test_a_relative_path_is_resolved_by_the_constructor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later change of the working directory does not change the file."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    monkeypatch.chdir(here)
    session = CachedSession("s", journal="agent.db")
    monkeypatch.chdir(there)
    await session.add_items(messages("a"))
    await session.entries()
    await session.close()
    assert list(there.iterdir()) == []
    monkeypatch.chdir(here)
    async with CachedSession("s", journal="agent.db") as again:
        assert contents(await again.get_items()) == ["a"]


async def test_a_cache_and_a_session_share_a_journal(journal: Path) -> None:
    """Closing the cache does not close a session that was made without it."""
    cache = SessionCache(journal)
    inside, outside = cache.session("s"), CachedSession("s", journal=journal)
    await inside.add_items(messages("a"))
    await cache.close()
    assert contents(await outside.get_items()) == ["a"]
    await outside.close()


async def test_a_different_durability_is_logged_and_ignored(
    journal: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A journal has one durability in a process: a later request for another one is logged, a
    request for the same one is not."""
    quick = SyncOptions(durability="normal")
    async with CachedSession("a", journal=journal, options=quick):
        async with SessionCache(journal, options=SyncOptions(durability="normal")):
            assert not caplog.records
        async with SessionCache(journal) as cache:
            assert [record.levelname for record in caplog.records] == ["WARNING"]
            assert "other options" in caplog.text
            assert cache._engine.options == quick


async def test_a_journal_may_be_opened_again_while_it_closes(journal: Path) -> None:
    """A new session does not wait for the old one's close, and no item is lost."""
    session = CachedSession("s", journal=journal)
    await session.add_items(messages(0))
    for number in range(1, 20):
        closing = asyncio.ensure_future(session.close())
        await asyncio.sleep(0)
        session = CachedSession("s", journal=journal)
        await session.add_items(messages(number))
        await closing
    assert contents(await session.get_items()) == [str(n) for n in range(20)]
    await session.close()


# -- leaks -----------------------------------------------------------------------------


async def test_the_last_close_leaves_nothing(journal: Path, server: DevServer) -> None:
    """No task, thread, open file, connection or lock of the library remains."""
    threads, tasks = journal_threads(), asyncio.all_tasks()
    cache = SessionCache(journal, url=server.url)
    sessions = [cache.session(f"user-{n}") for n in range(5)]
    for session in sessions:
        await session.add_items(messages(*range(300)))
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


async def test_an_injected_client_is_not_closed(journal: Path, server: DevServer) -> None:
    """Closing every session leaves the client open and usable."""
    async with AsyncDakeraClient(server.url, max_retries=1, timeout=60) as client:
        cache = SessionCache(journal, client=client)
        one, other = cache.session("a"), cache.session("b")
        await one.add_items(messages("a"))
        await one.close()
        await other.add_items(messages("b"))
        await cache.flush(timeout=60)
        await cache.close()
        assert replicators() == set()
        again = CachedSession("a", client=client, journal=":memory:")
        await again.sync(timeout=60)
        assert contents(await again.get_items()) == ["a"]
        await again.close()


async def test_the_last_session_with_a_server_ends_the_replicator(
    journal: Path, server: DevServer
) -> None:
    """A local session over the same journal keeps working without it."""
    local = CachedSession("s", journal=journal)
    synced = CachedSession.from_url("s", url=server.url, journal=journal)
    await local.add_items(messages("a"))
    await synced.flush(timeout=60)
    await synced.close()
    assert replicators() == set()
    await local.add_items(messages("b"))
    assert contents(await local.get_items()) == ["a", "b"]
    await local.close()


async def test_a_close_sends_pending_items(journal: Path, server: DevServer) -> None:
    """Items that were written just before a close are on the server after it."""
    options = SyncOptions(close_timeout=60.0)
    async with SessionCache(journal, url=server.url, options=options) as cache:
        for number in range(3):
            await cache.session(f"user-{number}").add_items(messages(number))
    async with SessionCache(journal) as cache:
        assert cache.status().pending == 0
    async with SessionCache(":memory:", url=server.url) as elsewhere:
        for number in range(3):
            session = elsewhere.session(f"user-{number}")
            await session.sync(timeout=60)
            assert contents(await session.get_items()) == [str(number)]


async def test_a_close_without_a_server_keeps_pending_items(journal: Path) -> None:
    """No item is lost, and nothing keeps running."""
    cache = SessionCache(journal, url="http://127.0.0.1:9")
    session = cache.session("s")
    await session.add_items(messages("a"))
    assert contents(await session.get_items()) == ["a"]
    await cache.close()
    assert replicators() == set()
    async with SessionCache(journal) as again:
        assert again.status().pending == 1
        assert contents(await again.session("s").get_items()) == ["a"]
