"""Import a database, and kill the process at its first progress: see test_moving_sqlite."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

from cached_session import CachedSession, ImportProgress, import_sqlite_session


def die(progress: ImportProgress) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


async def main(journal: str, database: str) -> None:
    async with CachedSession("talk", journal=journal) as session:
        await import_sqlite_session(session, database, on_progress=die)


asyncio.run(main(*sys.argv[1:]))
