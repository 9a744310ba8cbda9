"""Write to a journal in a separate process: ``other_process.py JOURNAL URL WORD...``.

The process adds each word, prints a line when it is ready, and stays until its standard input ends.
"""

from __future__ import annotations

import asyncio
import sys

from cached_session import CachedSession
from cached_session.options import SyncOptions

OPTIONS = SyncOptions(poll_interval=0.1, watch_interval=0.1, backoff_base=0.1, close_timeout=0.5)


async def main(journal: str, url: str, words: list[str]) -> None:
    session = CachedSession.from_url(
        "talk", url=url, journal=journal, options=OPTIONS, hydrate=False
    )
    async with session:
        await session.get_items()
        for word in words:
            await session.add_items([{"role": "user", "content": word}])
        # There is no event for a running replicator, so poll.
        while session._engine.loop_host.replicator() is None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.read)


asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
