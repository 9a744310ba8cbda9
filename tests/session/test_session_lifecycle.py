"""The end of a process, and what the files beside a journal give away."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
from pathlib import Path

from session_support import CHILD_SECONDS, Child, said, words

from cached_session import CachedSession
from cached_session.devserver import DevServer

CANARY = "canary-9d1c5b0e7f2a"


async def test_a_terminated_process_keeps_what_it_acknowledged(journal: Path) -> None:
    """SIGTERM in the middle of writing: every word whose call had returned is there."""
    code = """
    async def main():
        session = CachedSession("s", journal=sys.argv[1])
        for number in range(1_000_000):
            await session.add_items(said(number))
            tell(number)
    asyncio.run(main())
    """
    with Child(code, journal) as child:
        told = [child.told()[0] for _ in range(20)]
        child.process.send_signal(signal.SIGTERM)
        out, _ = child.process.communicate(timeout=CHILD_SECONDS)
        assert child.process.returncode == -signal.SIGTERM
    told += [int(line[1:-1]) for line in out.splitlines() if line.endswith("]")]
    async with CachedSession("s", journal=journal) as session:
        found = [int(word) for word in words(await session.get_items())]
    assert found[: len(told)] == told
    assert len(found) - len(told) in (0, 1)


async def test_files_are_the_owners_only_and_hold_no_key(journal: Path, server: DevServer) -> None:
    """The journal, its log, its index and the lock, under umask 0, after a yes and a 503."""
    before = os.umask(0)
    try:
        async with CachedSession.from_url(
            "s", url=server.url, api_key=CANARY, journal=journal
        ) as session:
            await session.add_items(said("a"))
            await session.flush(timeout=10)
            server.faults.status(503)
            await session.add_items(said("b"))
            for _ in range(1000):
                if session.status().last_error is not None:
                    break
                await asyncio.sleep(0.01)
            assert session.status().last_error is not None
            files = {path.name: path for path in journal.parent.iterdir()}
            assert set(files) == {"agent.db", "agent.db-wal", "agent.db-shm", "agent.db.lock"}
            for path in files.values():
                assert stat.S_IMODE(path.stat().st_mode) == 0o600, path.name
                assert CANARY.encode() not in path.read_bytes(), path.name
    finally:
        os.umask(before)
