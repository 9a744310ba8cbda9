"""Servers for the benchmark: the development server, Redis, and a proxy that counts."""

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

__all__ = ["CountingProxy", "Server", "devserver", "free_port", "redis"]

STARTUP_TIMEOUT = 20.0
"""Seconds to wait for a server to start."""


def free_port() -> int:
    """Return a free port."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A development server in another process."""

    def __init__(self, url: str, pid: int) -> None:
        self.url = url
        self._pid = pid

    async def reset(self, latency_ms: float) -> None:
        """Delete all data and logged requests, and set the latency of each request."""
        faults = [{"kind": "latency", "seconds": latency_ms / 1000}] if latency_ms else []
        await self._dev("POST", "reset", {})
        await self._dev("PUT", "faults", {"faults": faults})
        await self._dev("DELETE", "requests", {})

    async def advance(self, seconds: float) -> None:
        """Move the clock of the server forward."""
        await self._dev("POST", "clock", {"advance": seconds})

    async def requests(self) -> list[str]:
        """Return ``METHOD /path`` of every request since `reset`."""
        answer = await self._dev("GET", "requests", {})
        return [f"{one['method']} {one['path']}" for one in answer["requests"]]

    def cpu_seconds(self) -> float | None:
        """Return the processor seconds of the server; None on systems without /proc."""
        try:
            fields = Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        # Fields 14 and 15 of the line: clock ticks in user mode and in kernel mode.
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    async def _dev(self, method: str, what: str, body: dict[str, Any]) -> Any:
        async with httpx.AsyncClient(timeout=STARTUP_TIMEOUT) as client:
            answer = await client.request(method, f"{self.url}/_dev/{what}", json=body)
        answer.raise_for_status()
        return answer.json()


@asynccontextmanager
async def devserver() -> AsyncIterator[Server]:
    """Run a development server without latency."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = f"-m cached_session.cli.main devserver --port {port}".split()
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, stdout=subprocess.DEVNULL
    )
    try:
        await _wait_until_listening(port)
        yield Server(url, process.pid)
    finally:
        process.kill()
        await process.wait()


@asynccontextmanager
async def redis(directory: Path) -> AsyncIterator[str | None]:
    """Run a Redis that syncs each write to the disk, as SQLite does here; yield its URL.

    Yield None if redis-server is not installed.
    """
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
        await _wait_until_listening(port)
        yield f"redis://127.0.0.1:{port}"
    finally:
        process.terminate()
        await process.wait()


async def _wait_until_listening(port: int) -> None:
    for _ in range(int(STARTUP_TIMEOUT / 0.02)):
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.02)
        else:
            writer.close()
            return
    raise RuntimeError(f"no server listens on port {port} after {STARTUP_TIMEOUT:g} seconds")


class CountingProxy:
    """A proxy to a server that counts bytes, requests and round trips.

    A request that begins after the first byte of a response may depend on that response, so it
    counts as a further round trip. Concurrent requests count as one round trip. The count is an
    upper bound, because a later request does not always depend on an earlier one.
    """

    def __init__(self, url: str) -> None:
        self._server = urlsplit(url)
        self.sent = self.received = self.requests = self.round_trips = 0

    @asynccontextmanager
    async def open(self) -> AsyncIterator[str]:
        """Run the proxy and yield its URL."""
        connections: set[asyncio.Task[None]] = set()

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connections.add(asyncio.ensure_future(self._forward(reader, writer)))

        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()
            for connection in connections:
                connection.cancel()
            await asyncio.gather(*connections, return_exceptions=True)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection(
            self._server.hostname, self._server.port
        )
        # The round trip of the current request on this connection; 0 if there is no request.
        trip = 0

        async def forward_request() -> None:
            nonlocal trip
            while data := await reader.read(1 << 16):
                self.sent += len(data)
                if not trip:
                    trip = self.round_trips + 1
                    self.requests += 1
                server_writer.write(data)
                await server_writer.drain()

        async def forward_response() -> None:
            nonlocal trip
            while data := await server_reader.read(1 << 16):
                self.received += len(data)
                self.round_trips = max(self.round_trips, trip)
                trip = 0
                writer.write(data)
                await writer.drain()

        directions = [
            asyncio.ensure_future(forward_request()),
            asyncio.ensure_future(forward_response()),
        ]
        try:
            await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for direction in directions:
                direction.cancel()
            await asyncio.gather(*directions, return_exceptions=True)
            writer.close()
            server_writer.close()
