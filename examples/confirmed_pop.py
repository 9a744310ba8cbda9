"""A task list that workers on several machines share: each task is handed out once.

python examples/confirmed_pop.py

It requires an atomic delete on the server; docs/guides/multiple-devices.md explains the limits.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from cached_session import CachedSession, PopUnconfirmed
from cached_session.devserver import DevServer
from echo import text_of


async def work(session: CachedSession) -> list[str]:
    """Take tasks until none is left, and return them."""
    taken = []
    while item := await session.pop_item():
        taken.append(text_of(item))
    return taken


async def main() -> None:
    """Let two workers take tasks; then stop the server, so that no task is handed out."""
    with tempfile.TemporaryDirectory() as name, DevServer() as server:
        one, two = (
            CachedSession.from_url(
                "tasks", url=server.url, journal=Path(name) / f"{worker}.db", pop="confirmed"
            )
            for worker in ("one", "two")
        )
        async with one, two:
            for number in range(6):
                await one.add_items([{"role": "user", "content": f"task {number}"}])
            await one.flush(timeout=30)
            await two.sync(timeout=30)
            by_one, by_two = await asyncio.gather(work(one), work(two))
            taken = sorted(by_one + by_two)
            assert taken == [f"task {number}" for number in range(6)], taken
            print(f"{len(taken)} tasks, each handed out once")

            await one.add_items([{"role": "user", "content": "one more"}])
            await one.flush(timeout=30)
            server.stop()
            try:
                await one.pop_item()
            except PopUnconfirmed as error:
                print(f"nothing handed out: {type(error).__name__}")
            server.start()


if __name__ == "__main__":
    asyncio.run(main())
