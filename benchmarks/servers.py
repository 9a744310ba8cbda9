"""What stands at the other end: the development server, Redis, and a line that counts."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

__all__ = ["CountingLine", "Server", "devserver", "free_port", "redis"]

PATIENCE = 20.0
"""Seconds until a server that does not answer will not."""


def free_port() -> int:
    """A port where nothing listens."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A devserver in a process of its own."""

    def __init__(self, url: str, pid: int) -> None:
        self.url = url
        self._pid = pid

    async def begin(self, latency_ms: float) -> None:
        """Forget all data and requests; answer that much later from now on."""
        faults = [{"kind": "latency", "seconds": latency_ms / 1000}] if latency_ms else []
        await self._dev("POST", "reset", {})
        await self._dev("PUT", "faults", {"faults": faults})
        await self._dev("DELETE", "requests", {})

    async def advance(self, seconds: float) -> None:
        """Let time pass for the server."""
        await self._dev("POST", "clock", {"advance": seconds})

    async def requests(self) -> list[str]:
        """``METHOD /path`` of every request since `begin`."""
        answer = await self._dev("GET", "requests", {})
        return [f"{one['method']} {one['path']}" for one in answer["requests"]]

    def cpu_seconds(self) -> float | None:
        """What the process has used of its processors; None where nobody tells."""
        try:
            fields = Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        # The 14th and 15th of the whole line: in user mode, and in the kernel for it.
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    async def _dev(self, method: str, what: str, body: dict[str, Any]) -> Any:
        async with httpx.AsyncClient(timeout=PATIENCE) as client:
            answer = await client.request(method, f"{self.url}/_dev/{what}", json=body)
        answer.raise_for_status()
        return answer.json()


@asynccontextmanager
async def devserver() -> AsyncIterator[Server]:
    """A devserver without latency."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = f"-m cached_session.cli.main devserver --port {port}".split()
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, stdout=subprocess.DEVNULL
    )
    try:
        await _answering(port)
        yield Server(url, process.pid)
    finally:
        process.kill()
        await process.wait()


@asynccontextmanager
async def redis(directory: Path) -> AsyncIterator[str | None]:
    """The URL of a Redis that syncs each write to the disk, as SQLite does here; None if the server
    is not installed."""
    program = shutil.which("redis-server")
    if program is None:
        yield None
        return
    port = free_port()
    directory.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240 - nothing is measured yet
    command = f"--bind 127.0.0.1 --port {port} --appendonly yes --appendfsync always --dir"
    process = await asyncio.create_subprocess_exec(
        program, *command.split(), str(directory), "--save", "", stdout=subprocess.DEVNULL
    )
    try:
        await _answering(port)
        yield f"redis://127.0.0.1:{port}"
    finally:
        process.terminate()
        await process.wait()


async def _answering(port: int) -> None:
    for _ in range(int(PATIENCE / 0.02)):
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.02)
        else:
            writer.close()
            return
    raise RuntimeError(f"nothing listens on port {port}")


class CountingLine:
    """A way to a server that counts bytes, requests and round trips.

    A round trip is counted from the first byte of an answer on: a request that begins after it may
    depend on it. So the count is one of requests that follow each other, and what a device asks
    side by side is one; it errs on the high side, for not every later request waits for an earlier.
    """

    def __init__(self, url: str) -> None:
        self._to = urlsplit(url)
        self.sent = self.received = self.requests = self.round_trips = 0

    @asynccontextmanager
    async def open(self) -> AsyncIterator[str]:
        """The URL at which the line begins."""
        lines: set[asyncio.Task[None]] = set()

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            lines.add(asyncio.ensure_future(self._line(reader, writer)))

        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()
            for line in lines:
                line.cancel()
            await asyncio.gather(*lines, return_exceptions=True)

    async def _line(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(self._to.hostname, self._to.port)
        # The round trip that the request under way on this connection is part of; 0: none is.
        trip = 0

        async def out() -> None:
            nonlocal trip
            while data := await reader.read(1 << 16):
                self.sent += len(data)
                if not trip:
                    trip = self.round_trips + 1
                    self.requests += 1
                far_writer.write(data)
                await far_writer.drain()

        async def back() -> None:
            nonlocal trip
            while data := await far_reader.read(1 << 16):
                self.received += len(data)
                self.round_trips = max(self.round_trips, trip)
                trip = 0
                writer.write(data)
                await writer.drain()

        ways = [asyncio.ensure_future(out()), asyncio.ensure_future(back())]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            writer.close()
            far_writer.close()
