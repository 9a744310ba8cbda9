"""Caches with journals of their own in memory and one server, on virtual time: for what a few
caches do to a server with limits, where `simulation.py` looks for what goes wrong."""

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

__all__ = ["Crowd", "in_simulation"]

EPOCH_MS = 1_700_000_000_000


class Crowd:
    """Caches with journals of their own in memory, and the one server."""

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
    seed: int, work: Callable[[Crowd], Awaitable[Any]], options: SyncOptions | None = None
) -> Any:
    """Do something with a crowd, on virtual time."""
    with deterministic():
        loop = SimLoop()
        crowd = Crowd(loop, seed, options or SyncOptions(audit_interval=0.0))

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
