from __future__ import annotations

import asyncio
import socket
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from urllib.parse import urlsplit

import pytest
from devices import QUICK, Devices, items_on, one_history, said, until

from cached_session import CachedSession
from cached_session.devserver import DevServer

SHORT = replace(QUICK, request_timeout=0.4, connect_timeout=0.4)


class Proxy:
    """Stands between a device and the server, and treats each connection as its mode says."""

    def __init__(self, target: str) -> None:
        parts = urlsplit(target)
        self.host, self.port = str(parts.hostname), int(parts.port or 0)
        self.mode = "pass"
        self.accepted = 0
        self.url = ""
        self._writers: set[asyncio.StreamWriter] = set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Proxy]:
        serving = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{serving.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            serving.close()
            self.cut()

    def cut(self) -> None:
        """Reset what is open, as a middlebox does that has forgotten its connections."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        self._writers.add(writer)
        mode = self.mode
        try:
            if mode == "black hole":
                await asyncio.sleep(3600)
            far, away = await asyncio.open_connection(self.host, self.port)
            self._writers.add(away)
            await asyncio.gather(self._pump(reader, away), self._answer(far, writer, mode))
        except (OSError, asyncio.CancelledError):
            pass  # either side has gone: what this proxy is for
        finally:
            self._writers.discard(writer)
            writer.transport.abort()

    @staticmethod
    async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(65_536):
            writer.write(piece)
            await writer.drain()

    async def _answer(
        self, far: asyncio.StreamReader, writer: asyncio.StreamWriter, mode: str
    ) -> None:
        while piece := await far.read(65_536):
            if mode == "half open":
                continue  # the server has answered, and nobody hears of it
            if mode == "reset":
                writer.write(piece[: len(piece) // 2])
                await writer.drain()
                writer.transport.abort()
                return
            if mode == "loris":
                for byte in piece:
                    writer.write(bytes([byte]))
                    await asyncio.sleep(0.1)
            writer.write(piece)
            await writer.drain()


async def _median(session: CachedSession, count: int = 20) -> float:
    taken = []
    for number in range(count):
        began = time.perf_counter()
        await session.add_items([said(f"{number}")])
        await session.get_items(limit=5)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


@pytest.mark.parametrize("mode", ["black hole", "half open", "loris", "reset"])
async def test_a_fault_of_the_network_holds_up_no_call(
    device: Devices, server: DevServer, mode: str
) -> None:
    """While the way to the server is broken, calls are made and return although no request can end;
    the state says why, and everything arrives once when the way is mended."""
    async with Proxy(server.url).running() as proxy:
        a = device.new("a", options=SHORT, url=proxy.url)
        online = await _median(a)
        await a.sync(timeout=20)
        proxy.mode = mode
        proxy.cut()
        await a.add_items([said("apart")])
        await until(lambda: a.status().state == "offline")
        assert a.status().last_error
        broken = await _median(a)
        assert a.status().pending >= 21
        print(f"{mode}: a call costs {broken / online:.2f} times what it costs online")
        proxy.mode = "pass"
        proxy.cut()
        await until(lambda: a.status().pending == 0, 20)
        await until(lambda: a.status().last_error is None)
        assert len(items_on(server)) == 41
        assert len(await one_history(a, device.new("late"))) == 41


async def test_connections_cut_while_idle_are_made_anew(device: Devices, server: DevServer) -> None:
    """A middlebox that forgets idle connections costs at most a retry, and no operation."""
    async with Proxy(server.url).running() as proxy:
        a = device.new("a", options=SHORT, url=proxy.url)
        for number in range(10):
            await a.add_items([said(f"{number}")])
            await a.sync(timeout=20)
            proxy.cut()
        assert items_on(server) == [f"{number}" for number in range(10)]


def _closed_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.mark.parametrize("fault", ["refused", "no such name", "no TLS"])
async def test_a_server_that_cannot_be_reached_at_all(
    device: Devices, server: DevServer, fault: str
) -> None:
    """A closed port, a name that does not exist and a server without TLS are offline with their
    reason; calls go on, and what was written arrives when the address is put right."""
    url = {
        "refused": f"http://127.0.0.1:{_closed_port()}",
        "no such name": "http://nowhere.invalid:3000",
        "no TLS": server.url.replace("http://", "https://"),
    }[fault]
    a = device.new("a", options=SHORT, url=url)
    await a.add_items([said("one")])
    await until(lambda: a.status().state == "offline")
    assert url in str(a.status().last_error)
    assert len(await a.get_items()) == 1
    await a.close()
    again = device.new("a", options=SHORT)
    await again.sync(timeout=20)
    assert items_on(server) == ["one"]
