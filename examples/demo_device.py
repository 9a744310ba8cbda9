"""One device of the demo: an agent, a session and a journal of its own, here or in a process.

`Device` is all that an application does. `DeviceProcess` is the same in a process of its own, told
what to do over its standard input: `python examples/demo_device.py JOURNAL URL`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from agents import Agent, RunHooks, Runner, set_tracing_disabled

from airline_agent import Item, Recording, airline_agent
from cached_session import CachedSession

SESSION_ID = "support/daiki_lee_6144"

set_tracing_disabled(True)  # the SDK's traces would go to a server of its own
logging.getLogger("cached_session").addHandler(logging.NullHandler())  # the story tells it


@dataclass(frozen=True)
class Turn:
    """What one question led to."""

    question: str
    reply: str
    tools: list[str]
    seconds: float


@dataclass(frozen=True)
class Look:
    """What a device holds, and what reading it costs."""

    items: list[Item]
    writers: list[str]
    state: str
    pending: int
    parked: int
    read_tail_seconds: float
    read_all_seconds: float


class _Meanwhile(RunHooks[None]):
    """Calls a function while the agent is using a tool, once."""

    def __init__(self, happens: Callable[[], None]) -> None:
        self._happens: Callable[[], None] | None = happens

    async def on_tool_start(self, *_: Any) -> None:
        """The agent is in the middle of a turn: now."""
        happens, self._happens = self._happens, None
        if happens:
            happens()


class Device:
    """A phone or a laptop with the same conversation on it."""

    def __init__(self, journal: Path, url: str, *, live: bool = False) -> None:
        self.agent: Agent[None] = airline_agent(Recording(), live=live)
        self.session = CachedSession.from_url(SESSION_ID, url=url, journal=journal)

    async def ask(self, question: str, meanwhile: Callable[[], None] | None = None) -> Turn:
        """One turn of the conversation, run by the SDK's own Runner."""
        hooks = _Meanwhile(meanwhile) if meanwhile else None
        start = time.perf_counter()
        result = await Runner.run(self.agent, question, session=self.session, hooks=hooks)
        seconds = time.perf_counter() - start
        called = [
            str(getattr(item.raw_item, "name", "?"))
            for item in result.new_items
            if item.type == "tool_call_item"
        ]
        return Turn(question, str(result.final_output), called, seconds)

    async def look(self) -> Look:
        """The whole history, the state of things, and the median cost of a read."""
        items = await self.session.get_items()
        tail, whole = [], []
        for _ in range(50):
            start = time.perf_counter()
            await self.session.get_items(20)
            middle = time.perf_counter()
            await self.session.get_items()
            tail.append(middle - start)
            whole.append(time.perf_counter() - middle)
        status = self.session.status()
        return Look(
            items=[dict(item) for item in items],
            writers=[entry.writer for entry in await self.session.entries()],
            state=status.state,
            pending=status.pending,
            parked=status.parked,
            read_tail_seconds=statistics.median(tail),
            read_all_seconds=statistics.median(whole),
        )

    async def wait_for(self, state: str, timeout: float) -> None:
        """Give the background task the time to notice; `look` says what it noticed."""
        deadline = time.monotonic() + timeout
        while self.session.status().state != state:
            if time.monotonic() > deadline:
                return
            await asyncio.sleep(0.05)

    async def sync(self, timeout: float) -> None:
        """Everything here is there, and everything there is here."""
        await self.session.sync(timeout=timeout)

    async def close(self) -> None:
        """What is not sent stays in the journal."""
        await self.session.close()


class DeviceProcess:
    """The same device, in another process with an event loop and a journal of its own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.pid = process.pid

    @classmethod
    async def start(cls, journal: Path, url: str, *, live: bool = False) -> DeviceProcess:
        """Start the process; it opens the journal at its first order."""
        command = [sys.executable, __file__, str(journal), url, *(["--live"] if live else [])]
        pipe = asyncio.subprocess.PIPE
        return cls(
            await asyncio.create_subprocess_exec(
                *command, stdin=pipe, stdout=pipe, limit=64 * 1024 * 1024
            )
        )

    async def ask(self, question: str) -> Turn:
        """As `Device.ask`."""
        return Turn(**await self._order("ask", question))

    async def look(self) -> Look:
        """As `Device.look`."""
        return Look(**await self._order("look"))

    async def wait_for(self, state: str, timeout: float) -> None:
        """As `Device.wait_for`."""
        await self._order("wait_for", state, timeout)

    async def sync(self, timeout: float) -> None:
        """As `Device.sync`."""
        await self._order("sync", timeout)

    async def close(self) -> None:
        """Let the device close its session, and see its process end."""
        assert self._process.stdin
        self._process.stdin.close()
        await self._process.wait()

    async def _order(self, verb: str, *arguments: Any) -> Any:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps([verb, *arguments]).encode() + b"\n")
        await self._process.stdin.drain()
        answer = json.loads(await self._process.stdout.readline() or b'{"error": "it died"}')
        if "error" in answer:
            raise RuntimeError(f"the other device could not {verb}: {answer['error']}")
        return answer["done"]


async def _obey(journal: Path, url: str, *, live: bool) -> None:
    device = Device(journal, url, live=live)
    while line := await asyncio.to_thread(sys.stdin.readline):
        verb, *arguments = json.loads(line)
        try:
            done = await getattr(device, verb)(*arguments)
            answer: dict[str, Any] = {"done": None if done is None else asdict(done)}
        except Exception as error:  # noqa: BLE001 - the one who gave the order reports it
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)
    await device.close()


if __name__ == "__main__":
    asyncio.run(_obey(Path(sys.argv[1]), sys.argv[2], live="--live" in sys.argv[3:]))
