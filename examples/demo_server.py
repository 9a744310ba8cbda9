"""The server of the demo: the development server as a process that can be killed."""

from __future__ import annotations

import signal
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

import httpx
from dakera import AsyncDakeraClient

LATENCY_MS = 20  # added to each request, as for a data centre in the same country


class DevServer:
    """The process `cached-session devserver --port N --data FILE`."""

    def __init__(self, data: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.data = data
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Return the process id of the running server, or None."""
        return self._process.pid if self._process else None

    def start(self, timeout: float = 20) -> None:
        """Start the process and wait until it answers, `timeout` seconds at most."""
        command = f"devserver --port {self.port} --data {{}} --latency {LATENCY_MS}".split()
        command = [part.format(self.data) for part in command]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "cached_session.cli.main", *command],
            stdout=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + timeout
        while True:
            try:
                httpx.get(f"{self.url}/health", timeout=1).raise_for_status()
                return
            except httpx.HTTPError as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the devserver did not start: {error}") from error
                time.sleep(0.05)

    def kill(self) -> None:
        """Kill the process with SIGKILL, as a power failure does."""
        if self._process:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    async def conversation(self) -> list[tuple[str, str]]:
        """Return (id, content) of all memories, newest first, as the official client lists them."""
        async with AsyncDakeraClient(self.url) as client:
            return [
                (memory["id"], memory["content"])
                for agent in await client.list_agents()
                for memory in await client.agent_memories(agent["agent_id"], limit=1000)
            ]

    async def round_trip(self) -> float:
        """Return the seconds in which the official client reads 20 memories (median of 9 reads)."""
        async with AsyncDakeraClient(self.url) as client:
            (agent,) = await client.list_agents()
            taken = []
            for _ in range(9):
                start = time.perf_counter()
                await client.agent_memories(agent["agent_id"], limit=20)
                taken.append(time.perf_counter() - start)
        return statistics.median(taken)
