"""A list of tasks shared by workers on several machines: each task is handed out once.

python examples/confirmed_pop.py

As far as the server's delete is atomic: docs/guides/multiple-devices.md explains this.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from cached_session import CachedSession, PopUnconfirmed
from cached_session.devserver import DevServer
from echo import text_of


async def work(session: CachedSession) -> list[str]:
    """Take tasks until none is left."""
    done = []
    while item := await session.pop_item():
        done.append(text_of(item))
    return done


async def main() -> None:
    """Two workers race; then the server is away, and nothing is handed out on a guess."""
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
