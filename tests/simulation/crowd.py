"""Many caches with journals in memory and one server, on virtual time. Measures the load of a few
caches on a server with limits, where `simulation.py` looks for errors."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

from cached_session.engine.engine import Engine
from cached_session.engine.session_config import SessionConfig
from cached_session.options import SyncOptions
from cached_session.runtime import Runtime
from cached_session.session import CachedSession, session_over
from tests.simulation.loop import SimLoop, deterministic
from tests.simulation.network import Network, SimSpec
from tests.simulation.server import SimServer

__all__ = ["CacheCluster", "in_simulation"]

EPOCH_MS = 1_700_000_000_000


class CacheCluster:
    """Caches with their own journals in memory, and the one server."""

    def __init__(self, loop: SimLoop, seed: int, options: SyncOptions) -> None:
        self.loop = loop
        self.seed = seed
        self.options = options
        self.server = SimServer(
            lambda: 1_700_000_000 + loop.time(), Random(seed), "replace", shuffles=False
        )
        self.network = Network(loop, self.server, str(seed), lambda _: None)
        self._made: list[tuple[CachedSession, Engine, Any]] = []

    def session(self, number: int, session_id: str) -> CachedSession:
        random = Random(f"{self.seed}/{number}")
        runtime = Runtime(
            wall_ms=lambda: EPOCH_MS + int(self.loop.time() * 1000),
            monotonic=self.loop.time,
            random=random,
            token=random.randbytes,
            threaded=False,
        )
        engine = Engine(":memory:", self.options, runtime)
        spec: Any = SimSpec(self.network, f"d{number}")
        engine.join(spec)
        session = session_over(engine, SessionConfig(session_id, spec))
        self._made.append((session, engine, spec))
        return session

    async def close(self) -> None:
        for session, engine, spec in self._made:
            await session.close()
            await engine.release(spec)


def in_simulation(
    seed: int, work: Callable[[CacheCluster], Awaitable[Any]], options: SyncOptions | None = None
) -> Any:
    """Run a coroutine function with a cluster, on virtual time."""
    with deterministic():
        loop = SimLoop()
        crowd = CacheCluster(loop, seed, options or SyncOptions(audit_interval=0.0))

        async def main() -> Any:
            try:
                return await work(crowd)
            finally:
                await crowd.close()

        try:
            result = loop.run_for(main())
            assert not loop.failures, loop.failures
            return result
        finally:
            loop.close()
