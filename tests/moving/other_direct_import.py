"""Import from a server, and kill the process at its first progress: see test_moving_files."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

from cached_session import CachedSession, ImportProgress, import_dakera_session


def die(progress: ImportProgress) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


async def main(journal: str, url: str, agent: str) -> None:
    async with CachedSession.from_url("talk", url=url, journal=journal) as session:
        await import_dakera_session(session, agent, on_progress=die)


asyncio.run(main(*sys.argv[1:]))
