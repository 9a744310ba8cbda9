from __future__ import annotations

import asyncio
from collections.abc import Iterable
from math import ceil, log2
from typing import Any

import pytest

from cached_session.options import SyncOptions
from cached_session.remote.naming import agent_id

from .crowd import Crowd, in_simulation
from .server import SimServer, failure


@pytest.mark.slow
def test_one_poisoned_operation_among_ten_thousand() -> None:
    """One operation of 10,000 that the server refuses is found in a logarithm of requests on top
    of what the others take, parked and shown; the rest arrives, and so does it after the mend."""

    async def work(crowd: Crowd) -> None:
        crowd.server.poison = "POISON"
        session = crowd.session(0, "talk")
        for number in range(10_000):
            text = "POISON" if number == 6_789 else f"{number}"
            await session.add_items([{"role": "user", "content": text}])
        batches: list[int] = []
        plain = crowd.server.store

        def counting(agent: str, memories: Iterable[dict[str, Any]]) -> set[str]:
            batch = list(memories)
            batches.append(len(batch))
            return plain(agent, batch)

        crowd.server.store = counting  # type: ignore[method-assign]
        report = await session.sync(timeout=3600)
        assert (report.pending, report.parked) == (0, 1)
        (parked,) = await session.parked()
        assert parked.dot.counter == 6_790
        assert session.status().parked == 1
        assert len(crowd.server.ids(agent_id("talk"))) == 10_000  # and one of them explains
        print(f"{len(batches)} store requests for 10,000 operations, of them {batches}")
        # As many as it takes without the poison, two for each halving, and the placeholder.
        assert len(batches) <= ceil(10_000 / min(batches[:8])) + 2 * ceil(log2(1000)) + 2
        crowd.server.poison = None
        assert await session.retry_parked() == 1
        await session.sync(timeout=3600)
        assert (session.status().parked, session.status().pending) == (0, 0)
        assert len(await session.get_items()) == 10_000

    in_simulation(2, work, SyncOptions(push_delay=3600.0, audit_interval=0.0))


class Limited(SimServer):
    """Takes so many memories a minute from one agent, or from all."""

    limit = 60
    together = False
    refused = 0

    def store(self, agent: str, memories: Iterable[dict[str, Any]]) -> set[str]:
        batch = list(memories)
        minute, whose = int(self._now() // 60), "" if self.together else agent
        self.taken: dict[tuple[int, str], int]
        taken = self.__dict__.setdefault("taken", {})
        if taken.get((minute, whose), 0) + len(batch) > self.limit:
            self.refused += 1
            raise failure(429, "so many a minute", 60 - self._now() % 60)
        taken[minute, whose] = taken.get((minute, whose), 0) + len(batch)
        return super().store(agent, batch)


def test_a_rate_limit_smaller_than_a_batch_is_found_and_used() -> None:
    """A server that takes 60 memories a minute gets 600 in less than twice the shortest time, with
    three refused requests a minute at most; an operation larger than the limit arrives too."""

    async def work(crowd: Crowd) -> None:
        crowd.server.__class__ = Limited
        server: Any = crowd.server
        session = crowd.session(0, "talk")
        await session.add_items([{"role": "user", "content": f"{n}"} for n in range(150)])
        for number in range(450):
            await session.add_items([{"role": "user", "content": f"{number}"}])
        began = crowd.loop.time()
        while session.status().pending:
            await asyncio.sleep(1.0)
            assert crowd.loop.time() - began < 3600, session.status()
        minutes = (crowd.loop.time() - began) / 60
        print(f"600 memories at 60 a minute: {minutes:.1f} minutes, {server.refused} refused")
        assert minutes <= 20
        assert server.refused <= 3 * minutes + 5

    in_simulation(3, work)
