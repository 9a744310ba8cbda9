"""A device of the demo with an agent, a session and a journal, in this process or another.

`Device` has the code that an application needs. `DeviceProcess` runs a `Device` in another process
(`python examples/demo_device.py JOURNAL URL`) and sends it commands over standard input.
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

set_tracing_disabled(True)  # otherwise the SDK sends traces to its own server
logging.getLogger("cached_session").addHandler(logging.NullHandler())  # only the report is printed


@dataclass(frozen=True)
class Turn:
    """One turn: a question, its answer, the tools that were called, and the time."""

    question: str
    reply: str
    tools: list[str]
    seconds: float


@dataclass(frozen=True)
class DeviceState:
    """The history and status of a device, and the median seconds of a read."""

    items: list[Item]
    writers: list[str]
    state: str
    pending: int
    parked: int
    read_tail_seconds: float
    read_all_seconds: float


class _DuringTool(RunHooks[None]):
    """Calls a function once, when the agent starts a tool."""

    def __init__(self, function: Callable[[], None]) -> None:
        self._function: Callable[[], None] | None = function

    async def on_tool_start(self, *_: Any) -> None:
        """Call the function at the first tool."""
        function, self._function = self._function, None
        if function:
            function()


class Device:
    """A device with its own journal; all devices share the session `SESSION_ID`."""

    def __init__(self, journal: Path, url: str, *, live: bool = False) -> None:
        self.agent: Agent[None] = airline_agent(Recording(), live=live)
        self.session = CachedSession.from_url(SESSION_ID, url=url, journal=journal)

    async def ask(self, question: str, during_tool: Callable[[], None] | None = None) -> Turn:
        """Run one turn with the SDK's Runner; call `during_tool` when the first tool starts."""
        hooks = _DuringTool(during_tool) if during_tool else None
        start = time.perf_counter()
        result = await Runner.run(self.agent, question, session=self.session, hooks=hooks)
        seconds = time.perf_counter() - start
        called = [
            str(getattr(item.raw_item, "name", "?"))
            for item in result.new_items
            if item.type == "tool_call_item"
        ]
        return Turn(question, str(result.final_output), called, seconds)

    async def inspect(self) -> DeviceState:
        """Return the whole history, the status, and the median seconds of 50 reads."""
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
        return DeviceState(
            items=[dict(item) for item in items],
            writers=[entry.writer for entry in await self.session.entries()],
            state=status.state,
            pending=status.pending,
            parked=status.parked,
            read_tail_seconds=statistics.median(tail),
            read_all_seconds=statistics.median(whole),
        )

    async def wait_for(self, state: str, timeout: float) -> None:
        """Wait until the session has the state, `timeout` seconds at most."""
        deadline = time.monotonic() + timeout
        while self.session.status().state != state:
            if time.monotonic() > deadline:
                return
            await asyncio.sleep(0.05)

    async def sync(self, timeout: float) -> None:
        """Send and fetch all operations."""
        await self.session.sync(timeout=timeout)

    async def close(self) -> None:
        """Close the session; unsent operations stay in the journal."""
        await self.session.close()


class DeviceProcess:
    """A device in another process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.pid = process.pid

    @classmethod
    async def start(cls, journal: Path, url: str, *, live: bool = False) -> DeviceProcess:
        """Start the process; it opens the journal at the first command."""
        command = [sys.executable, __file__, str(journal), url, *(["--live"] if live else [])]
        pipe = asyncio.subprocess.PIPE
        return cls(
            await asyncio.create_subprocess_exec(
                *command, stdin=pipe, stdout=pipe, limit=64 * 1024 * 1024
            )
        )

    async def ask(self, question: str) -> Turn:
        """Run `Device.ask` in the process."""
        return Turn(**await self._send("ask", question))

    async def inspect(self) -> DeviceState:
        """Run `Device.inspect` in the process."""
        return DeviceState(**await self._send("inspect"))

    async def wait_for(self, state: str, timeout: float) -> None:
        """Run `Device.wait_for` in the process."""
        await self._send("wait_for", state, timeout)

    async def sync(self, timeout: float) -> None:
        """Run `Device.sync` in the process."""
        await self._send("sync", timeout)

    async def close(self) -> None:
        """Close the session of the device and wait for the end of the process."""
        assert self._process.stdin
        self._process.stdin.close()
        await self._process.wait()

    async def _send(self, method: str, *arguments: Any) -> Any:
        """Call a method of the device in the process and return its result."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps([method, *arguments]).encode() + b"\n")
        await self._process.stdin.drain()
        answer = json.loads(
            await self._process.stdout.readline() or b'{"error": "its process ended"}'
        )
        if "error" in answer:
            raise RuntimeError(f"{method} failed on the other device: {answer['error']}")
        return answer["result"]


async def _run_commands(journal: Path, url: str, *, live: bool) -> None:
    """Run commands from standard input, one JSON list a line, and print a JSON answer to each."""
    device = Device(journal, url, live=live)
    while line := await asyncio.to_thread(sys.stdin.readline):
        method, *arguments = json.loads(line)
        try:
            result = await getattr(device, method)(*arguments)
            answer: dict[str, Any] = {"result": None if result is None else asdict(result)}
        except Exception as error:  # noqa: BLE001 - the parent process raises it
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)
    await device.close()


if __name__ == "__main__":
    asyncio.run(_run_commands(Path(sys.argv[1]), sys.argv[2], live="--live" in sys.argv[3:]))
