"""A cancelled call is applied entirely or not at all, and the journal keeps working."""

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
from tests.session.session_support import contents, messages, open_files, replicators

BATCH = messages("x", "y", "z")
BEFORE = ["a", "b"]
CALLS: dict[str, tuple[Callable[[Any], Any], list[str]]] = {
    "add_items": (lambda s: s.add_items(BATCH), [*BEFORE, "x", "y", "z"]),
    "pop_item": (lambda s: s.pop_item(), ["a"]),
    "clear_session": (lambda s: s.clear_session(), []),
}
each_call = pytest.mark.parametrize("call", CALLS)


@contextmanager
def locked(journal: Path) -> Iterator[None]:
    """Hold the journal's write lock on another connection, as another process would."""
    conn = sqlite3.connect(journal, isolation_level=None, check_same_thread=False)
    conn.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        conn.execute("ROLLBACK")
        conn.close()


@each_call
@pytest.mark.parametrize("turns", range(21))
async def test_a_cancelled_call_is_atomic(place: str, call: str, turns: int) -> None:
    """At whichever step the cancellation comes, the history is the one before or the one after."""
    change, after = CALLS[call]
    async with CachedSession("s", journal=place) as session:
        await session.add_items(messages(*BEFORE))
        task = asyncio.ensure_future(change(session))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        (outcome,) = await asyncio.gather(task, return_exceptions=True)
        found = contents(await session.get_items())
        assert found in (BEFORE, after)
        if not isinstance(outcome, BaseException):
            assert found == after
        # No effect of the cancelled call is applied later.
        await session.add_items(messages("later"))
        assert contents(await session.get_items()) == [*found, "later"]


@pytest.mark.parametrize("turns", range(21))
async def test_a_cancelled_first_call_leaves_a_journal(journal: Path, turns: int) -> None:
    """A call that is cancelled while the file is being made does not break the next call."""
    session = CachedSession("s", journal=journal)
    task = asyncio.ensure_future(session.add_items(BATCH))
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    found = contents(await session.get_items())
    assert found in ([], ["x", "y", "z"])
    await session.add_items(messages("later"))
    assert contents(await session.get_items()) == [*found, "later"]
    await session.close()


@each_call
async def test_a_cancelled_call_waits_for_its_outcome_behind_a_lock(
    journal: Path, call: str
) -> None:
    """While another process holds the lock, the outcome is open and the cancellation waits for
    it."""
    change, after = CALLS[call]
    async with CachedSession("s", journal=journal) as session:
        await session.add_items(messages(*BEFORE))
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
        assert contents(await session.get_items()) in (BEFORE, after)
        await session.add_items(messages("later"))
        assert contents(await session.get_items())[-1] == "later"


@each_call
async def test_a_lock_that_is_not_released_is_an_error_and_changes_nothing(
    journal: Path, call: str
) -> None:
    """After `busy_timeout` the error says how to find the holder, and nothing of the call is
    stored."""
    options = SyncOptions(busy_timeout=0.05)
    async with CachedSession("s", journal=journal, options=options) as session:
        await session.add_items(messages(*BEFORE))
        with locked(journal):
            with pytest.raises(JournalError, match=r"agent\.db is locked.*try again"):
                await CALLS[call][0](session)
            # Reading needs no lock.
            assert contents(await session.get_items()) == BEFORE
        assert contents(await session.get_items()) == BEFORE
        await CALLS[call][0](session)
        assert contents(await session.get_items()) == CALLS[call][1]


async def test_repeated_cancellation_is_atomic(journal: Path) -> None:
    """A call that is cancelled many times is still applied entirely or not at all."""
    async with CachedSession("s", journal=journal) as session:
        await session.add_items(messages(*BEFORE))
        with locked(journal):
            task = asyncio.ensure_future(session.add_items(BATCH))
            for _ in range(20):
                await asyncio.sleep(0)
                task.cancel()
            assert not task.done()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert contents(await session.get_items()) in (BEFORE, [*BEFORE, "x", "y", "z"])


async def test_each_of_many_cancelled_calls_is_atomic(place: str) -> None:
    """Calls that share a commit are cancelled one by one: whole batches are stored, in order."""
    async with CachedSession("s", journal=place) as session:
        tasks = [asyncio.ensure_future(session.add_items(messages(n, n))) for n in range(40)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        found = contents(await session.get_items())
    assert found[::2] == found[1::2]
    assert found[::2] == sorted(found[::2], key=int)
    for number, outcome in enumerate(outcomes):
        if outcome is None:
            assert str(number) in found
    assert {str(number) for number in range(1, 40, 2)} <= set(found)


async def test_a_timeout_is_a_cancellation(journal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A deadline around a call that waits for a lock raises TimeoutError, and the call is
    atomic."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with CachedSession("s", journal=journal) as session:
        await session.add_items(messages(*BEFORE))
        with locked(journal):
            # wait_for exists on every supported Python; asyncio.timeout does the same.
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
        assert contents(await session.get_items()) in (BEFORE, [*BEFORE, "x", "y", "z"])


@pytest.mark.skipif(not hasattr(asyncio, "timeout"), reason="came with Python 3.11")
@each_call
async def test_a_timeout_block_is_a_cancellation(place: str, call: str) -> None:
    """`asyncio.timeout(0)` around a call applies it entirely or not at all."""
    change, after = CALLS[call]
    async with CachedSession("s", journal=place) as session:
        await session.add_items(messages(*BEFORE))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await change(session)
        assert contents(await session.get_items()) in (BEFORE, after)


@each_call
async def test_an_anyio_scope_is_a_cancellation(place: str, call: str) -> None:
    """Anyio cancels repeatedly until its scope is left: the call ends and is atomic."""
    change, after = CALLS[call]
    async with CachedSession("s", journal=place) as session:
        await session.add_items(messages(*BEFORE))
        with anyio.move_on_after(0) as scope:
            await change(session)
            await anyio.lowlevel.checkpoint()
        assert scope.cancelled_caught
        assert contents(await session.get_items()) in (BEFORE, after)


@pytest.mark.parametrize("turns", range(12))
async def test_a_cancelled_read_changes_nothing(journal: Path, turns: int) -> None:
    """A long read that is cancelled leaves the session unchanged and no file open."""
    session = CachedSession("s", journal=journal)
    await session.add_items(messages(*range(2000)))
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
    """`close` always finishes: no task, thread or file remains, and the item is stored."""
    session = CachedSession.from_url("s", url=server.url, journal=journal)
    await session.add_items(messages("a"))
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
        assert contents(await again.get_items()) == ["a"]


async def test_a_close_in_a_cancelled_scope_closes_everything(
    journal: Path, server: DevServer
) -> None:
    """Anyio cancels every await in a cancelled scope, and the cache is closed nevertheless."""
    cache = SessionCache(journal, url=server.url)
    sessions = [cache.session(str(n)) for n in range(5)]
    for session in sessions:
        await session.add_items(messages("a"))
    with anyio.CancelScope() as scope:
        scope.cancel()
        await cache.close()
    assert [session.status().state for session in sessions] == ["closed"] * 5
    assert replicators() == set()
    assert open_files(journal.parent) == []


async def test_a_server_that_hangs_delays_a_close_once(journal: Path, server: DevServer) -> None:
    """`close_timeout` limits the close of a cache, however many sessions have pending items."""
    options = SyncOptions(close_timeout=2.0)
    cache = SessionCache(journal, url=server.url, options=options)
    sessions = [cache.session(str(n), hydrate=False) for n in range(20)]
    server.faults.latency(3600)
    for session in sessions:
        await session.add_items(messages("a"))
    loop = asyncio.get_running_loop()
    began = loop.time()
    await cache.close()
    assert loop.time() - began < 10 * options.close_timeout
