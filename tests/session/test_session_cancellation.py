"""A cancelled call is entirely in or entirely out, and the journal goes on."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from cached_session import CachedSession, JournalError, SessionCache, SyncOptions
from cached_session.devserver import DevServer
from tests.session.session_support import open_files, replicators, said, words

BATCH = said("x", "y", "z")
BEFORE = ["a", "b"]
CALLS: dict[str, tuple[Callable[[Any], Any], list[str]]] = {
    "add_items": (lambda s: s.add_items(BATCH), [*BEFORE, "x", "y", "z"]),
    "pop_item": (lambda s: s.pop_item(), ["a"]),
    "clear_session": (lambda s: s.clear_session(), []),
}
each_call = pytest.mark.parametrize("call", CALLS)


@contextmanager
def locked(journal: Path) -> Iterator[None]:
    """Another connection holds the journal's write lock, as another process would."""
    conn = sqlite3.connect(journal, isolation_level=None, check_same_thread=False)
    conn.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        conn.execute("ROLLBACK")
        conn.close()


@each_call
@pytest.mark.parametrize("turns", range(21))
async def test_a_cancelled_call_is_in_or_out(place: str, call: str, turns: int) -> None:
    """Whenever the cancellation comes, the history is the one before or the one after."""
    change, after = CALLS[call]
    async with CachedSession("s", journal=place) as session:
        await session.add_items(said(*BEFORE))
        task = asyncio.ensure_future(change(session))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        (outcome,) = await asyncio.gather(task, return_exceptions=True)
        found = words(await session.get_items())
        assert found in (BEFORE, after)
        if not isinstance(outcome, BaseException):
            assert found == after
        # And nothing is still to come.
        await session.add_items(said("later"))
        assert words(await session.get_items()) == [*found, "later"]


@pytest.mark.parametrize("turns", range(21))
async def test_a_cancelled_first_call_leaves_a_journal(journal: Path, turns: int) -> None:
    """Cancelled while the file is being made: the next call works."""
    session = CachedSession("s", journal=journal)
    task = asyncio.ensure_future(session.add_items(BATCH))
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    found = words(await session.get_items())
    assert found in ([], ["x", "y", "z"])
    await session.add_items(said("later"))
    assert words(await session.get_items()) == [*found, "later"]
    await session.close()


@each_call
async def test_a_call_cancelled_behind_a_lock_knows_its_outcome(journal: Path, call: str) -> None:
    """While another process holds the lock the outcome is open: the cancellation waits for it."""
    change, after = CALLS[call]
    async with CachedSession("s", journal=journal) as session:
        await session.add_items(said(*BEFORE))
        with locked(journal):
            task = asyncio.ensure_future(change(session))
            for _ in range(50):
                await asyncio.sleep(0)
            task.cancel()
            for _ in range(50):
                await asyncio.sleep(0)
            assert not task.done()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert words(await session.get_items()) in (BEFORE, after)
        await session.add_items(said("later"))
        assert words(await session.get_items())[-1] == "later"


@each_call
async def test_a_lock_that_is_not_let_go_is_an_error_and_changes_nothing(
    journal: Path, call: str
) -> None:
    """After ``busy_timeout`` the call says who to look for, and nothing of it is stored."""
    options = SyncOptions(busy_timeout=0.05)
    async with CachedSession("s", journal=journal, options=options) as session:
        await session.add_items(said(*BEFORE))
        with locked(journal):
            with pytest.raises(JournalError, match=r"agent\.db is locked.*try again"):
                await CALLS[call][0](session)
            # Reading needs no lock.
            assert words(await session.get_items()) == BEFORE
        assert words(await session.get_items()) == BEFORE
        await CALLS[call][0](session)
        assert words(await session.get_items()) == CALLS[call][1]


async def test_cancelling_again_and_again_changes_nothing_more(journal: Path) -> None:
    """An impatient canceller does not break the promise."""
    async with CachedSession("s", journal=journal) as session:
        await session.add_items(said(*BEFORE))
        with locked(journal):
            task = asyncio.ensure_future(session.add_items(BATCH))
            for _ in range(20):
                await asyncio.sleep(0)
                task.cancel()
            assert not task.done()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert words(await session.get_items()) in (BEFORE, [*BEFORE, "x", "y", "z"])


async def test_of_many_cancelled_calls_each_is_in_or_out(place: str) -> None:
    """Calls that share a commit are cancelled one by one: whole batches only, in order."""
    async with CachedSession("s", journal=place) as session:
        tasks = [asyncio.ensure_future(session.add_items(said(n, n))) for n in range(40)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        found = words(await session.get_items())
    assert found[::2] == found[1::2]
    assert found[::2] == sorted(found[::2], key=int)
    for number, outcome in enumerate(outcomes):
        if outcome is None:
            assert str(number) in found
    assert {str(number) for number in range(1, 40, 2)} <= set(found)


async def test_a_timeout_is_a_cancellation(journal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A deadline around a call that waits for a lock ends in TimeoutError, and in or out."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with CachedSession("s", journal=journal) as session:
        await session.add_items(said(*BEFORE))
        with locked(journal):
            # wait_for exists on every Python we name; asyncio.timeout does the same.
            waiting = asyncio.ensure_future(asyncio.wait_for(session.add_items(BATCH), 3600.0))
            for _ in range(50):
                await asyncio.sleep(0)
            with monkeypatch.context() as patch:
                patch.setattr(loop, "time", lambda: began + 3601.0)
                for _ in range(50):
                    await asyncio.sleep(0)
            assert not waiting.done()
        with pytest.raises(asyncio.TimeoutError):
            await waiting
        assert words(await session.get_items()) in (BEFORE, [*BEFORE, "x", "y", "z"])


@pytest.mark.skipif(not hasattr(asyncio, "timeout"), reason="came with Python 3.11")
@each_call
async def test_a_timeout_block_is_a_cancellation(place: str, call: str) -> None:
    """``asyncio.timeout(0)`` around a call leaves it entirely in or out."""
    change, after = CALLS[call]
    async with CachedSession("s", journal=place) as session:
        await session.add_items(said(*BEFORE))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await change(session)
        assert words(await session.get_items()) in (BEFORE, after)


@each_call
async def test_an_anyio_scope_is_a_cancellation(place: str, call: str) -> None:
    """Anyio cancels again and again until its scope is left; that ends, in or out."""
    change, after = CALLS[call]
    async with CachedSession("s", journal=place) as session:
        await session.add_items(said(*BEFORE))
        with anyio.move_on_after(0) as scope:
            await change(session)
            await anyio.lowlevel.checkpoint()
        assert scope.cancelled_caught
        assert words(await session.get_items()) in (BEFORE, after)


@pytest.mark.parametrize("turns", range(12))
async def test_a_cancelled_read_disturbs_nobody(journal: Path, turns: int) -> None:
    """A long read given up half way leaves the session as it was, and no file open."""
    session = CachedSession("s", journal=journal)
    await session.add_items(said(*range(2000)))
    task = asyncio.ensure_future(session.get_items())
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert len(await session.get_items()) == 2000
    await session.close()
    assert open_files(journal.parent) == []


@pytest.mark.parametrize("turns", range(16))
async def test_a_cancelled_close_closes(journal: Path, server: DevServer, turns: int) -> None:
    """``close`` always finishes: no task, thread or file is left, and the write is kept."""
    session = CachedSession.from_url("s", url=server.url, journal=journal)
    await session.add_items(said("a"))
    task = asyncio.ensure_future(session.close())
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await session.close()
    assert replicators() == set()
    if turns:  # before its first turn a task has not begun, and the second close did it all
        assert open_files(journal.parent) == []
    async with CachedSession("s", journal=journal) as again:
        assert words(await again.get_items()) == ["a"]


async def test_a_close_in_a_cancelled_scope_closes_everything(
    journal: Path, server: DevServer
) -> None:
    """Anyio cancels every await of a block that it leaves; the cache is closed all the same."""
    cache = SessionCache(journal, url=server.url)
    sessions = [cache.session(str(n)) for n in range(5)]
    for session in sessions:
        await session.add_items(said("a"))
    with anyio.CancelScope() as scope:
        scope.cancel()
        await cache.close()
    assert [session.status().state for session in sessions] == ["closed"] * 5
    assert replicators() == set()
    assert open_files(journal.parent) == []


async def test_a_server_that_hangs_holds_a_close_up_once(journal: Path, server: DevServer) -> None:
    """``close_timeout`` bounds the closing of a cache, however many sessions have words to send."""
    options = SyncOptions(close_timeout=2.0)
    cache = SessionCache(journal, url=server.url, options=options)
    sessions = [cache.session(str(n), hydrate=False) for n in range(20)]
    server.faults.latency(3600)
    for session in sessions:
        await session.add_items(said("a"))
    loop = asyncio.get_running_loop()
    began = loop.time()
    await cache.close()
    assert loop.time() - began < 10 * options.close_timeout
