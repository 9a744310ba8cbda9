"""A thundering herd: many devices reconnect together to a server with a request limit.

    python -m tests.simulation.herd           # 200 devices, 50 requests a second
    python -m tests.simulation.herd --start   # all of them start at that moment, instead

The time is virtual, and the seed decides everything.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from cached_session.engine.engine import Engine
from cached_session.engine.session_config import SessionConfig
from cached_session.options import SyncOptions
from cached_session.runtime import Runtime
from cached_session.session import CachedSession, session_over
from tests.simulation.device import EPOCH_MS
from tests.simulation.loop import SimLoop, deterministic
from tests.simulation.network import Network, SimRemote, SimSpec
from tests.simulation.server import SimServer, failure

__all__ = ["Herd", "run"]

OUTAGE = 600.0
"""Seconds of the outage: every device's back-off has reached its longest pause."""
ITEMS = 5
"""Items that each device writes during the outage."""
RETRY_AFTER = 2.0
"""Seconds of the Retry-After of an overloaded server."""
LONGEST = 1800.0


@dataclass
class Herd:
    """The load on a server, in seconds since it was back."""

    rate: int
    arrived: Counter[int] = field(default_factory=Counter)
    """Requests in each second, including refused ones."""
    turned_away: int = 0
    deepest: float = 0.0
    """The longest queue, in seconds of work."""
    done: list[float] = field(default_factory=list)
    """The time at which each device's outbox was empty."""

    @property
    def requests(self) -> int:
        return sum(self.arrived.values())

    @property
    def busiest(self) -> int:
        """The largest number of requests in one second."""
        return max(self.arrived.values())


class _RequestLimit:
    """Accepts `rate` requests a second with a queue of two seconds, and answers others with 503 and
    Retry-After."""

    def __init__(self, herd: Herd, now: Callable[[], float], is_down: Callable[[], bool]) -> None:
        self.herd = herd
        self.since = 0.0
        self._now = now
        self._is_down = is_down
        self._free = 0.0

    async def enter(self) -> None:
        now = self._now()
        if self._is_down():
            return  # the server is down: the network reports it
        self.herd.arrived[int(now - self.since)] += 1
        queue = max(0.0, self._free - now)
        if queue > RETRY_AFTER:
            self.herd.turned_away += 1
            raise failure(503, "too many requests wait", RETRY_AFTER)
        self.herd.deepest = max(self.herd.deepest, queue)
        self._free = max(now, self._free) + 1.0 / self.herd.rate
        await asyncio.sleep(self._free - now)


class _CrowdedRemote(SimRemote):
    door: _RequestLimit

    async def _ask(self, what: str, carry_out: Any, partly: Any = None) -> Any:
        await self.door.enter()
        return await super()._ask(what, carry_out, partly)


@dataclass(frozen=True)
class _CrowdedSpec(SimSpec):
    door: Any = None

    async def open(self, options: SyncOptions, offload: Any = None) -> SimRemote:
        remote = _CrowdedRemote(self.network, self.device, options)
        remote.door = self.door
        return remote


def run(seed: int = 0, *, devices: int = 200, rate: int = 50, start: bool = False) -> Herd:
    """Run a herd that reconnects, or starts, until all devices have finished.

    Raises:
        AssertionError: a device did not finish in `LONGEST` simulated seconds.
    """
    with deterministic():
        loop = SimLoop()
        try:
            return loop.run_for(_herd(loop, seed, devices, rate, start))
        finally:
            loop.close()


async def _herd(loop: SimLoop, seed: int, devices: int, rate: int, start: bool) -> Herd:
    herd = Herd(rate)
    server = SimServer(loop.time, Random(f"{seed}/server"), "replace", shuffles=False)
    network = Network(loop, server, str(seed), lambda _: None)
    door = _RequestLimit(herd, loop.time, lambda: network.faults.down)
    # No other process writes to these journals, so that they need not be polled every half second.
    options = SyncOptions(watch_interval=30.0)
    network.faults.down = not start
    sessions: list[CachedSession] = []
    cores: list[tuple[Engine, Any]] = []

    async def begin(number: int) -> None:
        name = f"device-{number}"
        random = Random(f"{seed}/{name}")
        runtime = Runtime(
            wall_ms=lambda: EPOCH_MS + int(loop.time() * 1000),
            monotonic=loop.time,
            random=random,
            token=random.randbytes,
            threaded=False,
        )
        engine = Engine(":memory:", options, runtime)
        spec: Any = _CrowdedSpec(network, name, door=door)
        engine.join(spec)
        session = session_over(engine, SessionConfig(name, spec, hydrate=False))
        sessions.append(session)
        cores.append((engine, spec))
        for item in range(ITEMS):
            await session.add_items([{"role": "user", "content": f"{name} says {item}"}])

    for number in range(devices):
        await begin(number)
    if not start:
        # All of them lose the server together too: only random jitter can spread them.
        await asyncio.sleep(OUTAGE)
    door.since = loop.time()
    network.faults.down = False
    waiting = dict(enumerate(sessions))
    while waiting:
        await asyncio.sleep(0.25)
        moment = loop.time() - door.since
        assert moment < LONGEST, f"{len(waiting)} of {devices} devices did not finish"
        for number in [n for n, session in waiting.items() if not session.status().pending]:
            del waiting[number]
            herd.done.append(moment)
    for session, (engine, spec) in zip(sessions, cores, strict=True):
        await session.close()
        await engine.release(spec)
    return herd


def _share(done: list[float], part: float) -> float:
    return sorted(done)[min(len(done) - 1, math.ceil(part * len(done)) - 1)]


def _show(herd: Herd) -> None:
    last = max(herd.arrived)
    width = 1 if last < 40 else math.ceil(last / 40)
    print(f"requests a second (the server takes {herd.rate}), by {width} s:")
    for first in range(0, last + 1, width):
        rate = sum(herd.arrived[second] for second in range(first, first + width)) / width
        print(f"{first:5d} s {rate:7.1f} {'#' * min(80, round(rate))}")
    done = [_share(herd.done, part) for part in (0.5, 0.95, 1.0)]
    print(
        f"{len(herd.done)} devices done: half in {done[0]:.1f} s, 95% in {done[1]:.1f} s, all in "
        f"{done[2]:.1f} s\n{herd.requests} requests, the busiest second {herd.busiest}, "
        f"{herd.turned_away} turned away, the longest queue {herd.deepest:.2f} s"
    )


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--devices", type=int, default=200)
    parser.add_argument("--rate", type=int, default=50)
    parser.add_argument("--start", action="store_true")
    asked = parser.parse_args()
    logging.getLogger("cached_session").setLevel(logging.ERROR)
    _show(run(asked.seed, devices=asked.devices, rate=asked.rate, start=asked.start))


if __name__ == "__main__":
    main()
