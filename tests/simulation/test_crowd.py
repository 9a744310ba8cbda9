from __future__ import annotations

import asyncio
import gc
import tracemalloc
from collections import deque
from collections.abc import Iterable
from math import ceil, log2
from typing import Any, ClassVar

import pytest

from cached_session.errors import JournalFull
from cached_session.history.ids import agent_id
from cached_session.options import SyncOptions
from tests.simulation.crowd import CacheCluster, in_simulation
from tests.simulation.server import SimServer, failure


@pytest.mark.promise(number=7)
@pytest.mark.slow
def test_one_refused_operation_among_ten_thousand_is_found() -> None:
    """One refused operation among 10,000 is found with a logarithmic number of additional requests,
    parked and shown. The others arrive, and so does it once the server accepts it."""

    async def work(crowd: CacheCluster) -> None:
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
        assert len(crowd.server.ids(agent_id("talk"))) == 10_000  # one of them is the placeholder
        print(f"{len(batches)} store requests for 10,000 operations, of them {batches}")
        # As many as without the refused one, two for each halving, and the placeholder.
        assert len(batches) <= ceil(10_000 / min(batches[:8])) + 2 * ceil(log2(1000)) + 2
        crowd.server.poison = None
        assert await session.retry_parked() == 1
        await session.sync(timeout=3600)
        assert (session.status().parked, session.status().pending) == (0, 0)
        assert len(await session.get_items()) == 10_000

    in_simulation(2, work, SyncOptions(push_delay=3600.0, audit_interval=0.0))


class RateLimitedServer(SimServer):
    """Accepts a number of memories a minute from one agent, or from all."""

    limit = 60
    together = False
    asked = 0
    refused = 0

    def store(self, agent: str, memories: Iterable[dict[str, Any]]) -> set[str]:
        self.asked += 1
        batch = list(memories)
        minute, whose = int(self._now() // 60), "" if self.together else agent
        self.taken: dict[tuple[int, str], int]
        taken = self.__dict__.setdefault("taken", {})
        if taken.get((minute, whose), 0) + len(batch) > self.limit:
            self.refused += 1
            raise failure(429, "so many a minute", 60 - self._now() % 60)
        taken[minute, whose] = taken.get((minute, whose), 0) + len(batch)
        return super().store(agent, batch)


def test_a_rate_limit_below_a_batch_is_found_and_used() -> None:
    """A server that accepts 60 memories a minute gets 600 in less than twice the shortest time,
    with at most three refused requests a minute, and an operation larger than the limit arrives
    too."""

    async def work(crowd: CacheCluster) -> None:
        crowd.server.__class__ = RateLimitedServer
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
        print(
            f"600 memories at 60 a minute: {minutes:.1f} minutes, {server.asked} store requests, "
            f"{server.refused} of them refused"
        )
        assert minutes <= 20
        assert server.refused <= 3 * minutes + 5

    in_simulation(3, work)


class SlowServer(SimServer):
    """Accepts a number of memories a second, and keeps only the last of them, so that the test's
    own memory does not grow."""

    rate = 1
    taken = 0
    _room = 20.0
    _since = 0.0
    _last: ClassVar[deque[dict[str, Any]]] = deque(maxlen=100)

    def store(self, agent: str, memories: Iterable[dict[str, Any]]) -> set[str]:
        memories = list(memories)
        ids = [memory["id"] for memory in memories]
        self._room = min(20.0, self._room + (self._now() - self._since) * self.rate)
        self._since = self._now()
        if len(ids) > self._room:
            raise failure(429, "so many a second", (len(ids) - self._room) / self.rate)
        self._room -= len(ids)
        self.taken += len(ids)
        self._last.extend(memories)
        return set(ids)

    def fetch(self, agent: str, identity: str, lag: float) -> dict[str, Any] | None:
        return next((memory for memory in self._last if memory["id"] == identity), None)


SECONDS = 180


@pytest.mark.promise(number=10)
@pytest.mark.slow
@pytest.mark.parametrize("when_full", ["block", "reject"])
def test_a_writer_a_hundred_times_too_fast_stays_bounded(when_full: Any) -> None:
    """For three minutes writers add a hundred items a second for a server that accepts one. The
    unsent items never exceed their limits, Python's memory does not grow after the first two
    minutes, and each accepted item is sent."""
    options = SyncOptions(
        max_pending_items=100,
        max_pending_bytes=12_000,
        when_full=when_full,
        full_timeout=2.0,
        audit_interval=0.0,
        poll_interval=60.0,
        prune_interval=60.0,
    )
    seen = {"accepted": 0, "refused": 0, "items": 0, "bytes": 0}
    memory: list[int] = []

    async def work(crowd: CacheCluster) -> None:
        crowd.server.__class__ = SlowServer
        server: Any = crowd.server
        session = crowd.session(0, "talk")
        began = crowd.loop.time()

        async def write(number: int) -> None:
            while crowd.loop.time() - began < SECONDS:
                batch = [{"role": "user", "content": f"{number} " + "x" * 40} for _ in range(5)]
                try:
                    await session.add_items(batch)
                    seen["accepted"] += len(batch)
                except JournalFull:
                    seen["refused"] += len(batch)
                await asyncio.sleep(0.2)

        async def watch() -> None:
            for look in range(1, int(SECONDS / 5) + 1):
                await asyncio.sleep(5.0)
                items, size = session._engine.journal.read_blocking(
                    lambda conn: conn.execute(
                        "SELECT coalesce(sum(o.count), 0), coalesce(sum(o.bytes), 0) "
                        "FROM waiting w JOIN ops o ON o.seq = w.seq WHERE w.state < 2"
                    ).fetchone()
                )
                seen["items"], seen["bytes"] = max(seen["items"], items), max(seen["bytes"], size)
                if look % 6 == 0:  # twice a minute: a collection costs more than all the rest
                    gc.collect()
                    memory.append(tracemalloc.get_traced_memory()[0])

        await asyncio.gather(watch(), *(write(number) for number in range(4)))
        await session.flush(timeout=3600)
        assert server.taken == seen["accepted"]
        assert len(await session.get_items()) == seen["accepted"]

    tracemalloc.start()
    try:
        in_simulation(4, work, options)
    finally:
        tracemalloc.stop()
    early, late = min(memory[2:4]), min(memory[-2:])
    print(f"{when_full}: {seen}, {early / 1e6:.1f} MB after 2 minutes, {late / 1e6:.1f} MB after 3")
    assert 80 < seen["items"] <= 100
    assert seen["bytes"] <= 12_000
    assert seen["accepted"] >= 0.8 * SECONDS * SlowServer.rate
    assert seen["refused"] > seen["accepted"] or when_full == "block"
    assert late - early < 500_000
