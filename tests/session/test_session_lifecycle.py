"""The end of a process, and the privacy of the files beside a journal."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import stat
import traceback
import warnings
from pathlib import Path

import pytest

from cached_session import (
    CachedSession,
    InvalidArgument,
    SessionCache,
    SessionClosed,
    SyncOptions,
    Unauthorized,
)
from cached_session.devserver import DevServer
from tests.session.session_support import (
    CHILD_SECONDS,
    Child,
    contents,
    failure_recorded,
    fault_applied,
    is_locked,
    leaks,
    library_threads,
    messages,
    server_connections,
)

CANARY = "canary-9d1c5b0e7f2a"


@pytest.mark.promise(number=1)
async def test_a_terminated_process_keeps_what_it_acknowledged(journal: Path) -> None:
    """After SIGTERM in the middle of writing, every item whose call had returned is stored."""
    code = """
    async def main():
        session = CachedSession("s", journal=sys.argv[1])
        for number in range(1_000_000):
            await session.add_items(messages(number))
            report(number)
    asyncio.run(main())
    """
    with Child(code, journal) as child:
        numbers = [child.read_line()[0] for _ in range(20)]
        child.process.send_signal(signal.SIGTERM)
        out, _ = child.process.communicate(timeout=CHILD_SECONDS)
        assert child.process.returncode == -signal.SIGTERM
    numbers += [int(line[1:-1]) for line in out.splitlines() if line.endswith("]")]
    async with CachedSession("s", journal=journal) as session:
        found = [int(word) for word in contents(await session.get_items())]
    assert found[: len(numbers)] == numbers
    assert len(found) - len(numbers) in (0, 1)


async def test_files_are_private_and_contain_no_key(
    journal: Path,
    server: DevServer,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Under umask 0 and after a success, a 503 and a 401, every file is private, and no file, log
    line, traceback or status contains the key."""
    caplog.set_level(logging.DEBUG)
    before = os.umask(0)
    try:
        async with CachedSession.from_url(
            "s", url=server.url, api_key=CANARY, journal=journal
        ) as session:
            await session.add_items(messages("a"))
            await session.flush(timeout=60)
            server.faults.status(503)
            failed = failure_recorded(monkeypatch)
            await session.add_items(messages("b"))
            await failed.wait()
            assert session.status().last_error is not None
            server.faults.clear()
            server.add_key("another")
            texts = []
            for call in (session.sync, session.flush, session.audit):
                with pytest.raises(Unauthorized) as caught:
                    await call()
                texts.append("".join(traceback.format_exception(caught.value)))
            texts.append(repr(session.status()))
            assert "401" in texts[0]
            assert CANARY not in "".join([*texts, caplog.text])
            files = {path.name: path for path in journal.parent.iterdir()}
            assert set(files) == {"agent.db", "agent.db-wal", "agent.db-shm", "agent.db.lock"}
            for path in files.values():
                assert stat.S_IMODE(path.stat().st_mode) == 0o600, path.name
                assert CANARY.encode() not in path.read_bytes(), path.name
    finally:
        os.umask(before)


async def _used(session: CachedSession) -> None:
    """Use a session so that it has tasks, threads, a lock, connections and files."""
    await session.add_items(messages(*range(600)))
    await session.get_items()
    await session.entries()
    await session.sync(timeout=60)
    await session.add_items(messages("last"))


@pytest.mark.parametrize("way", ["close", "cache", "async with", "twice", "error"])
async def test_a_close_leaves_no_task_thread_lock_or_connection(
    journal: Path, server: DevServer, way: str
) -> None:
    """However a session is closed, its resources and its lock are released on return."""
    if way == "cache":
        cache = SessionCache(journal, url=server.url)
        await _used(cache.session("s"))
        assert set(leaks(journal, server)) >= {"tasks", "threads", "lock", "connections"}
        await cache.close()
    elif way in ("async with", "error"):
        with contextlib.suppress(KeyError):
            async with CachedSession.from_url("s", url=server.url, journal=journal) as session:
                await _used(session)
                if way == "error":
                    raise KeyError
    else:
        session = CachedSession.from_url("s", url=server.url, journal=journal)
        await _used(session)
        await session.close()
        if way == "twice":
            await session.close()
    assert leaks(journal, server) == {}


@pytest.mark.parametrize("turns", [*range(8), 12, 20, 40])
@pytest.mark.parametrize("fault", ["none", "hangs"])
async def test_a_cancelled_close_leaves_nothing(
    journal: Path, server: DevServer, turns: int, fault: str
) -> None:
    """A close that is cancelled at any of its awaits, with a server that answers or hangs, finishes
    before the cancellation goes on."""
    session = CachedSession.from_url("s", url=server.url, journal=journal)
    await _used(session)
    if fault == "hangs":
        server.faults.latency(20)
        await session.add_items(messages("unsent"))
    closing = asyncio.ensure_future(session.close())
    for _ in range(turns):
        await asyncio.sleep(0)
    closing.cancel()
    await asyncio.gather(closing, return_exceptions=True)
    if not turns:  # it had not begun
        assert closing.cancelled()
        await session.close()
    assert leaks(journal, server) == {}
    async with CachedSession("s", journal=journal) as again:
        assert len(await again.get_items()) == 601 + (fault == "hangs")


async def test_a_close_while_writes_and_a_push_are_under_way_leaves_nothing(
    journal: Path, server: DevServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each write that was under way is stored or refused, and no resource remains."""
    cache = SessionCache(journal, url=server.url, options=SyncOptions(close_timeout=0.2))
    session = cache.session("s")
    await session.add_items(messages("first"))
    fault = server.faults.latency(3600, route="POST /v1/memories/store/batch")
    pushing = fault_applied(fault, monkeypatch)
    await session.add_items(messages("being sent"))
    await pushing.wait()
    writes = [asyncio.ensure_future(session.add_items(messages(n, n))) for n in range(50)]
    await asyncio.sleep(0)
    await cache.close()
    outcomes = await asyncio.gather(*writes, return_exceptions=True)
    assert all(outcome is None or isinstance(outcome, SessionClosed) for outcome in outcomes)
    assert leaks(journal, server) == {}
    stored = [str(n) for n, outcome in enumerate(outcomes) if outcome is None for _ in "xx"]
    async with CachedSession("s", journal=journal) as again:
        assert contents(await again.get_items()) == ["first", "being sent", *stored]


@pytest.mark.filterwarnings("ignore:coroutine 'Replicator:RuntimeWarning")
@pytest.mark.parametrize("how", ["run", "stopped"])
def test_a_loop_that_ends_first_leaves_nothing_after_a_close_on_another(
    journal: Path, server: DevServer, how: str
) -> None:
    """An event loop that ends properly leaves only the open file, and a close on another loop
    leaves nothing. A loop that is closed with running tasks leaves its sockets, which no other loop
    can close."""
    session = CachedSession.from_url("s", url=server.url, journal=journal)
    if how == "run":
        asyncio.run(_used(session))
        assert server_connections(server) == 0
        assert not is_locked(journal)
    else:
        loop = asyncio.new_event_loop()
        loop.run_until_complete(_used(session))
        abandoned = asyncio.all_tasks(loop)
        assert abandoned
        for task in abandoned:
            task._log_destroy_pending = False  # type: ignore[attr-defined] # meant here
        loop.close()
        del abandoned, task

    async def end() -> dict[str, object]:
        await session.close()
        return leaks(journal, server)

    with warnings.catch_warnings():
        # Python warns when it collects the sockets of the closed loop.
        warnings.simplefilter("ignore", ResourceWarning)
        left = asyncio.run(end())
    assert set(left) == (set() if how == "run" else {"connections"})
    assert library_threads() == set()


async def test_an_unclosed_cache_warns_and_loses_nothing(journal: Path) -> None:
    """Dropping the last reference to a cache and its sessions warns, and their items are stored."""
    cache = SessionCache(journal)
    session = cache.session("s")
    await session.add_items(messages("a"))
    engine = cache._engine
    with pytest.warns(ResourceWarning, match=r"SessionCache.*never closed.*async with"):  # noqa: PT031 - two steps
        del cache, session
        gc.collect()
    await engine.release(None)
    async with SessionCache(journal) as again:
        assert contents(await again.session("s").get_items()) == ["a"]


def test_a_closed_or_refused_cache_does_not_warn(recwarn: pytest.WarningsRecorder) -> None:
    """There is nothing to close if the constructor raised or after a close."""
    with pytest.raises(InvalidArgument):
        SessionCache(":memory:", options=None)  # type: ignore[arg-type]
    cache = SessionCache(":memory:")
    asyncio.run(cache.close())
    del cache
    gc.collect()
    assert [warning for warning in recwarn if warning.category is ResourceWarning] == []


def test_a_terminated_process_releases_its_lock_and_keeps_its_items(
    journal: Path, server: DevServer
) -> None:
    """After SIGTERM to a replicating process the lock is free, and the next process sends the
    acknowledged items."""
    code = """
    async def main():
        session = CachedSession.from_url("s", url=sys.argv[2], journal=sys.argv[1])
        await session.add_items(messages("sent"))
        await session.sync(timeout=60)
        report("ready")
        wait()
        await session.add_items(messages("unsent"))
        report("acknowledged")
        await asyncio.Event().wait()
    asyncio.run(main())
    """
    with Child(code, journal, server.url) as child:
        assert child.read_line() == ["ready"]
        assert is_locked(journal)
        server.faults.latency(3600)
        child.resume()
        assert child.read_line() == ["acknowledged"]
        child.process.send_signal(signal.SIGTERM)
        child.process.wait(CHILD_SECONDS)
        assert child.process.returncode == -signal.SIGTERM
    assert not is_locked(journal)
    server.faults.clear()

    async def next_one() -> list[str]:
        async with CachedSession.from_url("s", url=server.url, journal=journal) as session:
            await session.sync(timeout=60)
        async with CachedSession.from_url("s", url=server.url, journal=":memory:") as other:
            await other.sync(timeout=60)
            return contents(await other.get_items())

    assert asyncio.run(next_one()) == ["sent", "unsent"]
