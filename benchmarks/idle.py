"""The number of requests of an idle cache, and of a turn.

The results are exact and equal on every machine, because the time is virtual: the clock of the
event loop jumps to the next timer when no task is ready. An in-memory server counts the requests. A
guard counts as one request, although the first guard takes several.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncGenerator, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import orjson

from cached_session import CachedSession, SyncOptions
from cached_session.engine.engine import Engine
from cached_session.engine.session_config import SessionConfig
from cached_session.remote.connect import RemoteSpec
from cached_session.remote.protocol import GuardReport
from cached_session.remote.wire import EncodedMemory
from cached_session.runtime import Runtime
from cached_session.session import session_over
from conversations import history
from measure import Numbers, print_progress
from scale import Scale

__all__ = ["measure_idle"]

T = TypeVar("T")

HOUR = 3600.0
EPOCH_MS = 1_767_225_600_000
"""Wall clock at loop time 0. The loop time starts at 0, so that its floats stay precise."""
TURN_SECONDS = 30.0
"""Seconds between two turns."""
TURNS = 60
TURN_ITEMS = 3
"""Items of a turn."""


class _VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer when no task is ready."""

    _now = 0.0

    def time(self) -> float:
        return self._now

    def _run_once(self) -> None:
        scheduled = self._scheduled  # type: ignore[attr-defined]
        if scheduled and not self._ready:  # type: ignore[attr-defined]
            self._now = max(self._now, scheduled[0]._when)
        super()._run_once()  # type: ignore[misc]


def _run_in_virtual_time(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on a new loop with virtual time."""
    loop = _VirtualTimeLoop()
    try:
        return loop.run_until_complete(work)
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


@dataclass
class _Server:
    """An in-memory server that counts requests by (device, kind)."""

    loop: asyncio.AbstractEventLoop
    requests: Counter[tuple[str, str]] = field(default_factory=Counter)
    agents: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    streams: list[asyncio.Queue[tuple[str, str]]] = field(default_factory=list)


class _Remote:
    """`Remote` and `EventSource` of one device, connected to the in-memory server."""

    server = "http://in.memory"

    def __init__(self, server: _Server, device: str) -> None:
        self._server, self._device = server, device
        self.answered = 0

    def _count(self, what: str, agent: str) -> dict[str, dict[str, Any]]:
        """Count a request and return the memories of the agent."""
        self._server.requests[self._device, what] += 1
        self.answered += 1
        return self._server.agents.setdefault(agent, {})

    @property
    def server_second(self) -> int:
        return EPOCH_MS // 1000 + int(self._server.loop.time())

    async def store(self, agent: str, memories: Sequence[EncodedMemory]) -> set[str]:
        held = self._count("store", agent)
        now = EPOCH_MS // 1000 + int(self._server.loop.time())
        for memory in memories:
            held[memory.id] = {**orjson.loads(memory.data), "agent_id": agent, "created_at": now}
            for stream in self._server.streams:
                stream.put_nowait((agent, memory.id))
        return {memory.id for memory in memories}

    async def fetch(self, agent: str, memory: str) -> dict[str, Any] | None:
        return self._count("fetch", agent).get(memory)

    async def list_memories(self, agent: str, *, offset: int, limit: int) -> list[dict[str, Any]]:
        newest_first = list(self._count("page", agent).values())[::-1]
        return newest_first[offset : offset + limit]

    async def forget(self, agent: str, memories: Sequence[str]) -> int:
        held = self._count("forget", agent)
        return sum(held.pop(memory, None) is not None for memory in memories)

    async def find_by_tag(self, agent: str, tag: str) -> list[dict[str, Any]]:
        held = self._count("tagged", agent)
        return [memory for memory in held.values() if tag in memory["tags"]]

    async def recall(self, agent: str, query: str, limit: int) -> list[dict[str, Any]]:
        raise NotImplementedError("the benchmark does not recall")

    async def guard(self, agent: str) -> GuardReport:
        self._count("guard", agent)
        return GuardReport()

    async def aclose(self) -> None:
        """Do nothing: there is no connection."""

    async def events(self) -> AsyncGenerator[tuple[str, str] | None]:
        self._server.requests[self._device, "stream"] += 1
        stream: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        self._server.streams.append(stream)
        try:
            yield None
            while True:
                yield await stream.get()
        finally:
            self._server.streams.remove(stream)


@dataclass(frozen=True)
class _Spec:
    """The `RemoteSpec` of the in-memory server."""

    counting: _Server = field(compare=False)
    device: str
    server: str = _Remote.server
    client: None = None
    api_key: None = None
    move: bool = False

    async def open(self, _: SyncOptions, __: Any = None) -> _Remote:
        return _Remote(self.counting, self.device)


class _Device:
    """A device with an in-memory journal and without threads."""

    def __init__(self, server: _Server, name: str, *, listen: bool) -> None:
        # No other process writes to this journal, so it need not be watched every half second.
        self._options = SyncOptions(listen=listen, watch_interval=5.0)
        seeded = random.Random(name)
        runtime = Runtime(
            wall_ms=lambda: EPOCH_MS + int(server.loop.time() * 1000),
            monotonic=server.loop.time,
            random=seeded,
            token=seeded.randbytes,
            threaded=False,
        )
        self._engine = Engine(":memory:", self._options, runtime)
        self._spec = cast("RemoteSpec", _Spec(server, name))
        self._engine.join(self._spec)
        self._sessions: list[CachedSession] = []

    async def open(self, session_id: str) -> CachedSession:
        config = SessionConfig(session_id, self._spec, hydrate=False)
        session = session_over(self._engine, config)
        self._sessions.append(session)
        await session._ready()
        return session

    async def close(self) -> None:
        for session in self._sessions:
            await session.close()
        await self._engine.release(self._spec)


async def measure_idle(_: Path, scale: Scale) -> Numbers:
    """Count requests an hour by open sessions, and requests a turn, with and without events."""
    found: Numbers = {"hours": scale.hours, "rows": [], "turn": {}}
    for listen in (True, False):
        for sessions in scale.idle:
            print_progress(f"  {sessions} sessions, {'events' if listen else 'polling'}")
            first, later = await asyncio.to_thread(
                _run_in_virtual_time, _count_idle_requests(sessions, scale.hours, listen)
            )
            found["rows"].append(
                {"sessions": sessions, "events": listen, "first_hour": first, "an_hour": later}
            )
        found["turn"]["events" if listen else "polling"] = await asyncio.to_thread(
            _run_in_virtual_time, _count_turn_requests(listen)
        )
    return found


async def _count_idle_requests(sessions: int, hours: int, listen: bool) -> tuple[Numbers, Numbers]:
    """Return the requests in the hour after a turn in each session, and in a later hour."""
    server = _Server(asyncio.get_running_loop())
    device = _Device(server, "device", listen=listen)
    for number in range(sessions):
        session = await device.open(f"session {number}")
        await session.add_items(history(TURN_ITEMS))  # type: ignore[arg-type]
    await asyncio.sleep(HOUR)
    first = Counter(server.requests)
    await asyncio.sleep(HOUR * hours)
    later = server.requests - first
    await device.close()
    return (
        {what: float(count) for (_, what), count in sorted(first.items())},
        {what: count / hours for (_, what), count in sorted(later.items())},
    )


async def _count_turn_requests(listen: bool) -> Numbers:
    """Return the requests a turn of a device that writes, and of one that only receives."""
    server = _Server(asyncio.get_running_loop())
    devices = {name: _Device(server, name, listen=listen) for name in ("talks", "listens")}
    talks, listens = [await device.open("talk") for device in devices.values()]
    await asyncio.sleep(TURN_SECONDS)
    server.requests.clear()
    for _ in range(TURNS):
        await talks.get_items(50)
        await talks.add_items(history(TURN_ITEMS))  # type: ignore[arg-type]
        await asyncio.sleep(TURN_SECONDS)
    if len(await listens.get_items()) != TURN_ITEMS * TURNS:
        raise RuntimeError("the other device has not received every turn")
    requests = Counter(server.requests)
    for device in devices.values():
        await device.close()
    return {
        name: {
            what: count / TURNS for (who, what), count in sorted(requests.items()) if who == name
        }
        for name in devices
    }
