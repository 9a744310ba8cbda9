"""The network between a device and the server. All random decisions about a request are made when
it leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextvars import copy_context
from dataclasses import dataclass, field
from random import Random
from typing import Any

import orjson

from cached_session.options import SyncOptions
from cached_session.remote.errors import RemoteError
from cached_session.remote.protocol import GuardReport
from cached_session.remote.wire import EncodedMemory
from tests.simulation.loop import OWNER, SimLoop
from tests.simulation.server import SimServer, failure

__all__ = ["CHANCES", "Network", "NetworkFaults", "SimRemote", "SimSpec"]

SERVER = "http://simulated:3000"
LONGEST = 25.0
"""Seconds that a delayed request may take: longer than its sender waits."""

CHANCES = (
    "lose_request",
    "lose_answer",
    "slow",
    "late",
    "duplicate",
    "busy",
    "unavailable",
    "error_before",
    "error_after",
    "prefix",
    "drops",
    "damage",
    "skips",
)
"""The possible faults of one request, each with its own probability."""


@dataclass
class NetworkFaults:
    """The current network faults."""

    cut: set[str] = field(default_factory=set)
    """Devices that reach nothing."""
    deaf: set[str] = field(default_factory=set)
    """Devices that reach the server and get no answer."""
    down: bool = False
    lag: float = 0.0
    """Seconds by which one of the server's replicas is behind. Each read may hit it."""
    chances: dict[str, float] = field(default_factory=dict)

    def end(self) -> None:
        """End all faults."""
        self.cut.clear()
        self.deaf.clear()
        self.chances.clear()
        self.down, self.lag = False, 0.0

    def of(self, name: str) -> float:
        return self.chances.get(name, 0.0)


class Network:
    """One server, and the connections of all devices to it."""

    def __init__(
        self, loop: SimLoop, server: SimServer, seed: str, note: Callable[[str], None]
    ) -> None:
        self.loop = loop
        self.server = server
        self.faults = NetworkFaults()
        self.note = note
        self._seed = seed
        self._randoms: dict[str, Random] = {}
        self.requests = 0
        self.stragglers = 0
        """Requests that have neither arrived nor been lost."""
        self.unanswered = 0
        """Requests that succeeded without an answer to the sender."""
        self.late_commits = 0
        """Requests that were carried out after their sender had given up or had been answered."""

    def random(self, device: str) -> Random:
        """Return the random generator of one device's requests, so that leaving another device out
        does not change it."""
        return self._randoms.setdefault(device, Random(f"{self._seed}/network/{device}"))

    async def request(
        self,
        device: str,
        what: str,
        timeout: float,
        carry_out: Callable[[float], Any],
        partly: Callable[[], Any] | None = None,
    ) -> Any:
        """Carry out one request and return its answer.

        Raises:
            RemoteError: it was not answered with a success.
        """
        loop, faults = self.loop, self.faults
        self.requests += 1
        number = self.requests
        chance = self.random(device)
        hit = {name for name in CHANCES if chance.random() < faults.of(name)}
        out, back, again = (0.005 + 0.05 * chance.random() for _ in range(3))
        stretch, refuses, stale = chance.random(), chance.random(), chance.random()
        if "slow" in hit:
            out += 2.0 * stretch
        if "late" in hit:
            out += LONGEST * stretch
        sender = OWNER.get()
        answer: asyncio.Future[Any] = loop.create_future()
        self.note(f"{device} #{number} {what}{' ' + ','.join(sorted(hit)) if hit else ''}")

        def say(result: Any, error: RemoteError | None) -> None:
            self.unanswered += sender is not None and sender.dead
            if answer.done():
                return
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(result)

        def reply(result: Any, error: RemoteError | None) -> None:
            if device in self.faults.cut | self.faults.deaf or "lose_answer" in hit:
                self.unanswered += 1
                self.note(f"{device} #{number} answer lost")
                return
            in_world(back, say, result, error)

        def arrive(copy: bool = False) -> None:
            self.stragglers -= 1
            if answer.done() or copy:
                self.late_commits += 1
            if sender is not None and sender.dead:
                self.unanswered += 1
            if device in self.faults.cut or ("lose_request" in hit and not copy):
                self.note(f"{device} #{number} lost")
                return
            if self.faults.down:
                in_world(back, say, None, failure(None, "connection refused"))
                return
            if not copy:
                for name, status in (("busy", 429), ("unavailable", 503), ("error_before", 500)):
                    if name in hit:
                        wait = 1.0 + 6.0 * stretch if status != 500 else None
                        reply(None, failure(status, f"simulated {status}", wait))
                        return
            try:
                if "prefix" in hit and partly is not None and not copy:
                    partly()
                    self.unanswered += 1
                    reply(None, failure(500, "simulated 500 half way"))
                    return
                lag = self.faults.lag if stale < 0.5 else 0.0
                self.unanswered += "drops" in hit
                drops = "drops" in hit and partly is not None
                result = partly() if drops and partly is not None else carry_out(lag)
            except RemoteError as error:
                self.note(f"{device} #{number}{' again' if copy else ''} says {error}")
                if not copy:
                    reply(None, error)
                return
            self.note(f"{device} #{number}{' again' if copy else ''} done {_brief(result)}")
            if copy:
                return
            if "skips" in hit and isinstance(result, list):
                result = _skipping(result, stretch)
            if "damage" in hit:
                _damage(result, stretch)
            if "error_after" in hit:
                self.unanswered += 1
                reply(None, failure(500, "simulated 500 after the commit"))
            else:
                reply(result, None)

        world = copy_context()
        world.run(OWNER.set, None)

        def in_world(delay: float, callback: Callable[..., None], *arguments: Any) -> None:
            loop.call_later(delay, callback, *arguments, context=world)

        if device in faults.cut and refuses < 0.5:
            in_world(0.01, say, None, failure(None, "network unreachable"))
        else:
            self.stragglers += 1 + ("duplicate" in hit)
            in_world(out, arrive)
            if "duplicate" in hit:
                in_world(out + again + LONGEST * stretch * stretch, arrive, True)
        in_world(timeout, say, None, failure(None, "no answer in time"))
        return await answer


def _damage(result: Any, where: float) -> None:
    """Shorten the text of one memory, or drop its turn, as a faulty intermediary does."""
    memories = result if isinstance(result, list) else [result]
    if memories and isinstance(memories[0], dict):
        metadata = memories[int(where * len(memories))].get("metadata", {})
        if "cs_ts" in metadata and int(where * 1000) % 2:
            for name in ("cs_ts", "cs_tw", "cs_tc"):
                del metadata[name]
        elif metadata.get("cs_x"):
            metadata["cs_x"] = metadata["cs_x"].replace("hello", "help")[:-1] + "}"


def _skipping(memories: list[Any], where: float) -> list[Any]:
    """Shift a listing: rows are missing, but none of any writer's last operation. That one would
    leave no gap, and would be found by the next listing or by an audit only."""
    last: dict[str, int] = {}
    for memory in memories:
        said = memory["metadata"]
        last[said["cs_w"]] = max(last.get(said["cs_w"], 0), said["cs_c"])
    rows = [m for m in memories if m["metadata"]["cs_c"] < last[m["metadata"]["cs_w"]]]
    gone = rows[int(where * len(rows)) :][:3]
    return [memory for memory in memories if memory not in gone]


def _brief(result: Any) -> str:
    if isinstance(result, (list, set)):
        return str(len(result))
    return "memory" if isinstance(result, dict) else str(result)


class SimRemote:
    """`remote.base.Remote` over the simulated network."""

    def __init__(
        self, network: Network, device: str, options: SyncOptions, *, hides: bool = False
    ) -> None:
        self._network = network
        self._hides = hides
        self._device = device
        self._timeout = options.request_timeout
        self.closed = False
        self.answered = 0

    @property
    def server(self) -> str:
        return SERVER

    @property
    def server_second(self) -> int:
        return self._network.server.second()

    async def store(self, agent: str, memories: Sequence[EncodedMemory]) -> set[str]:
        body = b"[%b]" % b",".join(memory.data for memory in memories)
        ids = [memory.id for memory in memories]
        server = self._network.server

        def partly() -> set[str]:
            half = orjson.loads(body)[: len(ids) // 2]
            return server.store(agent, half) if half else set()

        found: set[str] = await self._ask(
            f"store {agent[3:9]} {_short(ids)}",
            lambda _: server.store(agent, orjson.loads(body)),
            partly,
        )
        return found

    async def fetch(self, agent: str, memory: str) -> dict[str, Any] | None:
        found: dict[str, Any] | None = await self._ask(
            f"fetch {agent[3:9]} {_short([memory])}",
            lambda lag: self._network.server.fetch(agent, memory, lag),
        )
        return found

    async def list_memories(self, agent: str, *, offset: int, limit: int) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = await self._ask(
            f"page {agent[3:9]} {offset}+{limit}",
            lambda lag: self._network.server.page(agent, offset, limit, lag, hides=self._hides),
        )
        return found

    async def forget(self, agent: str, memories: Sequence[str]) -> int:
        ids = list(memories)
        count: int = await self._ask(
            f"forget {agent[3:9]} {_short(ids)}",
            lambda _: self._network.server.forget(agent, ids),
        )
        return count

    async def find_by_tag(self, agent: str, tag: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = await self._ask(
            f"tagged {agent[3:9]} {tag[6:10]}{tag[tag.find('-', 6) :]}",
            lambda lag: self._network.server.tagged(agent, tag, lag),
        )
        return found

    async def recall(self, agent: str, query: str, limit: int) -> list[dict[str, Any]]:
        return await self.list_memories(agent, offset=0, limit=limit)

    async def guard(self, agent: str) -> GuardReport:
        await self._ask(f"guard {agent[3:9]}", lambda _: self._network.server.guard(agent))
        return GuardReport()

    async def aclose(self) -> None:
        self.closed = True

    async def _ask(
        self,
        what: str,
        carry_out: Callable[[float], Any],
        partly: Callable[[], Any] | None = None,
    ) -> Any:
        result = await self._network.request(self._device, what, self._timeout, carry_out, partly)
        self.answered += 1
        return result


def _short(ids: Sequence[str]) -> str:
    """Shorten ids to the parts that differ: the writer's first letters, counter, index, part."""
    named = [i.split("-", 2)[2] for i in ids]
    return " ".join(f"{name[:4]}{name[name.find('-') :]}" for name in named[:6]) + (
        f" (+{len(named) - 6})" if len(named) > 6 else ""
    )


@dataclass(frozen=True)
class SimSpec:
    """The connection settings of the simulated server, in place of `RemoteSpec`."""

    network: Network = field(compare=False)
    device: str
    server: str = SERVER
    client: None = None
    api_key: None = None
    move: bool = False
    hides: bool = False
    """Whether its listings omit some of the memories that it can fetch by id."""

    def is_same_server(self, other: Any) -> bool:
        return isinstance(other, SimSpec) and other.server == self.server

    def shares_client(self, other: Any) -> bool:
        return False

    async def open(self, options: SyncOptions, offload: Any = None) -> SimRemote:
        return SimRemote(self.network, self.device, options, hides=self.hides)
