"""What a cache asks of the server when nothing happens, and what a turn costs in requests.

Exact, and the same on every machine: nothing here is measured in real time. The library runs on a
loop whose clock jumps to the next timer whenever nothing is left to do, against a server in memory
that counts; hours pass in seconds. A guard counts as one request, though the first is several.
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
from cached_session.remote.connect import RemoteSpec
from cached_session.remote.protocol import GuardReport
from cached_session.remote.wire import EncodedMemory
from cached_session.runtime import Runtime
from conversations import history
from measure import Numbers, say
from scale import Scale

__all__ = ["idle"]

T = TypeVar("T")

HOUR = 3600.0
EPOCH_MS = 1_767_225_600_000
"""The wall clock when the loop's is 0: that one must stay small enough to tell timers apart."""
TURN_SECONDS = 30.0
"""Between two turns of somebody who talks."""
TURNS = 60
TURN = 3
"""Items of a turn."""


class _Hasty(asyncio.SelectorEventLoop):
    """When nothing is left to do, it is the time of the next timer."""

    _now = 0.0

    def time(self) -> float:
        return self._now

    def _run_once(self) -> None:
        scheduled = self._scheduled  # type: ignore[attr-defined]
        if scheduled and not self._ready:  # type: ignore[attr-defined]
            self._now = max(self._now, scheduled[0]._when)
        super()._run_once()  # type: ignore[misc]


def _in_no_time(work: Coroutine[Any, Any, T]) -> T:
    loop = _Hasty()
    try:
        return loop.run_until_complete(work)
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


@dataclass
class _Server:
    """Memories of agents, newest first; who asked for what."""

    loop: asyncio.AbstractEventLoop
    asked: Counter[tuple[str, str]] = field(default_factory=Counter)
    agents: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    streams: list[asyncio.Queue[tuple[str, str]]] = field(default_factory=list)


class _Remote:
    """`Remote` and `EventSource`, as one device sees them."""

    server = "http://in.memory"

    def __init__(self, server: _Server, device: str) -> None:
        self._server, self._device = server, device
        self.answered = 0

    def _ask(self, what: str, agent: str) -> dict[str, dict[str, Any]]:
        self._server.asked[self._device, what] += 1
        self.answered += 1
        return self._server.agents.setdefault(agent, {})

    async def store(self, agent: str, memories: Sequence[EncodedMemory]) -> set[str]:
        held = self._ask("store", agent)
        now = EPOCH_MS // 1000 + int(self._server.loop.time())
        for memory in memories:
            held[memory.id] = {**orjson.loads(memory.data), "agent_id": agent, "created_at": now}
            for stream in self._server.streams:
                stream.put_nowait((agent, memory.id))
        return {memory.id for memory in memories}

    async def fetch(self, agent: str, memory: str) -> dict[str, Any] | None:
        return self._ask("fetch", agent).get(memory)

    async def list_memories(self, agent: str, *, offset: int, limit: int) -> list[dict[str, Any]]:
        newest_first = list(self._ask("page", agent).values())[::-1]
        return newest_first[offset : offset + limit]

    async def forget(self, agent: str, memories: Sequence[str]) -> int:
        held = self._ask("forget", agent)
        return sum(held.pop(memory, None) is not None for memory in memories)

    async def find_by_tag(self, agent: str, tag: str) -> list[dict[str, Any]]:
        held = self._ask("tagged", agent)
        return [memory for memory in held.values() if tag in memory["tags"]]

    async def recall(self, agent: str, query: str, limit: int) -> list[dict[str, Any]]:
        raise NotImplementedError("nobody asks for it here")

    async def guard(self, agent: str) -> GuardReport:
        self._ask("guard", agent)
        return GuardReport()

    async def aclose(self) -> None:
        """Nothing is open."""

    async def events(self) -> AsyncGenerator[tuple[str, str] | None]:
        self._server.asked[self._device, "stream"] += 1
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
    """What `RemoteSpec` is to a real server."""

    counting: _Server = field(compare=False)
    device: str
    server: str = _Remote.server
    client: None = None
    api_key: None = None

    async def open(self, _: SyncOptions, __: Any = None) -> _Remote:
        return _Remote(self.counting, self.device)


class _Device:
    """A cache in memory, without threads."""

    def __init__(self, server: _Server, name: str, *, listen: bool) -> None:
        # Nobody else writes to this journal: no need to look for that every half second.
        self._options = SyncOptions(listen=listen, watch_interval=5.0)
        chance = random.Random(name)
        runtime = Runtime(
            wall_ms=lambda: EPOCH_MS + int(server.loop.time() * 1000),
            monotonic=server.loop.time,
            random=chance,
            token=chance.randbytes,
            threaded=False,
        )
        self._engine = Engine(":memory:", self._options, runtime)
        self._spec = cast("RemoteSpec", _Spec(server, name))
        self._engine.join(self._spec)
        self._sessions: list[CachedSession] = []

    async def open(self, session_id: str) -> CachedSession:
        session = CachedSession.__new__(CachedSession)
        session._setup(
            session_id,
            ":memory:",
            self._spec,
            None,
            "local",
            "text",
            False,
            self._options,
            None,
            None,
            engine=self._engine,
        )
        self._sessions.append(session)
        await session._ready()
        return session

    async def close(self) -> None:
        for session in self._sessions:
            await session.close()
        await self._engine.release(self._spec)


async def idle(_: Path, scale: Scale) -> Numbers:
    """Requests an hour of a cache with so many open sessions, with and without the event stream;
    requests a turn of one who talks and of one who listens."""
    found: Numbers = {"hours": scale.hours, "rows": [], "turn": {}}
    for listen in (True, False):
        for sessions in scale.idle:
            say(f"  {sessions} sessions, {'events' if listen else 'polling'}")
            first, later = await asyncio.to_thread(
                _in_no_time, _silence(sessions, scale.hours, listen)
            )
            found["rows"].append(
                {"sessions": sessions, "events": listen, "first_hour": first, "an_hour": later}
            )
        found["turn"]["events" if listen else "polling"] = await asyncio.to_thread(
            _in_no_time, _talk(listen)
        )
    return found


async def _silence(sessions: int, hours: int, listen: bool) -> tuple[Numbers, Numbers]:
    """What is asked for in the hour that begins with a turn in each session, and in a later one."""
    server = _Server(asyncio.get_running_loop())
    device = _Device(server, "device", listen=listen)
    for number in range(sessions):
        session = await device.open(f"session {number}")
        await session.add_items(history(TURN))  # type: ignore[arg-type]
    await asyncio.sleep(HOUR)
    first = Counter(server.asked)
    await asyncio.sleep(HOUR * hours)
    later = server.asked - first
    await device.close()
    return (
        {what: float(count) for (_, what), count in sorted(first.items())},
        {what: count / hours for (_, what), count in sorted(later.items())},
    )


async def _talk(listen: bool) -> Numbers:
    """Requests a turn: of a device on which somebody talks, and of one that listens."""
    server = _Server(asyncio.get_running_loop())
    devices = {name: _Device(server, name, listen=listen) for name in ("talks", "listens")}
    talks, listens = [await device.open("talk") for device in devices.values()]
    await asyncio.sleep(TURN_SECONDS)
    server.asked.clear()
    for _ in range(TURNS):
        await talks.get_items(50)
        await talks.add_items(history(TURN))  # type: ignore[arg-type]
        await asyncio.sleep(TURN_SECONDS)
    if len(await listens.get_items()) != TURN * TURNS:
        raise RuntimeError("the other device has not seen every turn")
    asked = Counter(server.asked)
    for device in devices.values():
        await device.close()
    return {
        name: {what: count / TURNS for (who, what), count in sorted(asked.items()) if who == name}
        for name in devices
    }
