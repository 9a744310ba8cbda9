"""A malicious server on a real socket, and the limits of the harm that it can do to a device."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import anyio
import pytest

from cached_session.history.ids import session_key
from cached_session.history.ops import Dot, Kind, Operation
from cached_session.remote.http import MEMORY_BYTES, MOST_BYTES
from cached_session.remote.wire import memories_of
from cached_session.replication import listing_scan
from tests.replication.devices import (
    MANUAL,
    PATIENCE,
    QUICK,
    SESSION,
    Devices,
    text_message,
    time_out,
    wait_until,
)

CANARY = "canary-b9d7c1f0a2e4"
SOCKET_BYTES = 8 * 1024 * 1024
"""Bytes that the buffers of two sockets may hold unread."""


@dataclass
class Request:
    """A request, and the stream for its answer."""

    method: str
    target: str
    headers: dict[str, str]
    writer: asyncio.StreamWriter

    def answer(self, body: object, status: str = "200 OK", **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        head = {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}
        lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in head.items())
        self.writer.write(f"HTTP/1.1 {status}\r\n{lines}\r\n".encode() + data)


@dataclass
class HostileServer:
    """Answers each request with a function of the test."""

    answer: Callable[[Request], Awaitable[None]]
    asked: list[Request] = field(default_factory=list)
    url: str = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                method, target, _ = line.decode().split(" ")
                headers = {}
                while (header := await reader.readline()) not in (b"\r\n", b""):
                    name, _, value = header.decode().partition(":")
                    headers[name.lower()] = value.strip()
                await reader.readexactly(int(headers.get("content-length", 0)))
                self.asked.append(Request(method, target, headers, writer))
                await self.answer(self.asked[-1])
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the device has closed the connection
        finally:
            writer.transport.abort()

    def listings(self) -> int:
        return sum(asked.target.split("?")[0].endswith("/memories") for asked in self.asked)


@asynccontextmanager
async def hostile_server(
    answer: Callable[[Request], Awaitable[None]],
) -> AsyncIterator[HostileServer]:
    """Start a server with these answers."""
    found = HostileServer(answer)
    serving = await asyncio.start_server(found.serve, "127.0.0.1", 0)
    found.url = f"http://127.0.0.1:{serving.sockets[0].getsockname()[1]}"
    try:
        yield found
    finally:
        serving.close()


def memory(number: int) -> dict[str, Any]:
    """Return a valid memory of an unknown writer."""
    payload = json.dumps({"role": "user", "content": str(number)}, separators=(",", ":"))
    dot = Dot(f"{number:024x}".translate(str.maketrans("0123456789", "ghijklmnop")), 1)
    op = Operation(dot, Kind.APPEND, 1 << 60, 1_700_000_000_000, (payload,))
    (made,) = memories_of(op, op.digest(session_key(SESSION)), SESSION)
    return {**made, "created_at": 1_700_000_000}


@pytest.mark.parametrize("ours", [True, False])
async def test_an_endless_listing_is_left_after_a_bounded_number_of_pages(
    device: Devices, monkeypatch: pytest.MonkeyPatch, ours: bool
) -> None:
    """A server that invents memories is asked for a limited number of pages, and for twenty pages
    when they are not ours. Neither listing counts as the whole history."""
    monkeypatch.setattr(listing_scan, "MAX_PAGES", 40)

    async def answer(asked: Request) -> None:
        query = parse_qs(urlsplit(asked.target).query)
        start, size = int(query["offset"][0]), 5
        if ours:
            asked.answer([memory(number) for number in range(start, start + size)])
        else:
            asked.answer([{"id": f"x{n}", "content": "x"} for n in range(start, start + size)])

    async with hostile_server(answer) as server:
        a = device.new("a", url=server.url, options=MANUAL, hydrate=False)
        report = await a.sync(timeout=PATIENCE)
        most = 41 if ours else listing_scan.FOREIGN_PAGES
        assert most <= server.listings() <= 2 * most  # the first pull, and the sync
        assert report.pulled == 0 or ours
        assert not a.status().hydrated
        await a.add_items([text_message("goes on")])
        assert (await a.get_items())[-1] == text_message("goes on") or ours
        await a.close()


def test_the_page_limit_is_the_documented_one() -> None:
    """The limit is ten million memories in the largest pages that we request, as SECURITY.md
    states."""
    assert listing_scan.MAX_PAGES == 20_000
    assert listing_scan.MAX_PAGES * MANUAL.page_size == 10_000_000


async def test_an_endless_answer_is_cut_off(device: Devices) -> None:
    """A body without an end is read up to the limit, and the connection is closed: the server can
    send no more than that and the socket buffers."""
    sent = 0

    async def answer(asked: Request) -> None:
        nonlocal sent
        asked.writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            asked.writer.write(b"10000\r\n" + b" " * 65_536 + b"\r\n")
            await asked.writer.drain()
            sent += 65_536

    async with hostile_server(answer) as server:
        a = device.new("a", url=server.url, options=MANUAL, hydrate=False)
        await time_out(a.sync, lambda: "too long" in str(a.status().last_error))
        most = MOST_BYTES + MANUAL.first_page_size * MEMORY_BYTES + SOCKET_BYTES
        assert sent <= most * len(server.asked)
        await a.close()


@pytest.mark.parametrize("status", ["301 Moved Permanently", "302 Found", "307 Temporary Redirect"])
async def test_the_key_is_sent_to_no_other_host(device: Devices, status: str) -> None:
    """A redirect to another host is reported and not followed, for each request and for the event
    stream: the other host gets no request."""

    async def never(asked: Request) -> None:
        asked.answer([])

    async with hostile_server(never) as thief:

        async def answer(asked: Request) -> None:
            asked.answer(b"", status, Location=f"{thief.url}{asked.target}")

        async with hostile_server(answer) as server:
            options = replace(QUICK, listen=True)
            a = device.new("a", url=server.url, api_key=CANARY, options=options, hydrate=False)
            await a.add_items([text_message("one")])
            for call in (a.sync, a.flush):
                await time_out(call, lambda: a.status().last_error)
            await wait_until(lambda: any("/events/" in asked.target for asked in server.asked))
            await wait_until(lambda: {asked.method for asked in server.asked} >= {"GET", "POST"})
            assert all(CANARY in asked.headers["authorization"] for asked in server.asked)
            assert status[:3] in str(a.status().last_error)
            assert thief.asked == []
            await a.close()


async def test_invalid_answers_change_no_other_table_or_session(device: Devices) -> None:
    """Answers full of other sessions' names, SQL and wrong types leave the schema unchanged and
    create no session."""
    evil = "x'); DROP TABLE ops; --"

    async def answer(asked: Request) -> None:
        found, page = memory(1), []
        for name in found["metadata"]:
            page.append({**found, "metadata": {**found["metadata"], name: evil}})
            page.append({**found, "id": evil, "agent_id": evil, "tags": [evil]})
        asked.answer([*page, {"id": evil, "metadata": {evil: evil}}, evil, None, 7, [[]]])

    async with hostile_server(answer) as server:
        a = device.new("a", url=server.url, options=MANUAL, hydrate=False)
        await a.add_items([text_message("one")])
        path = a._engine.path
        with closing(sqlite3.connect(path)) as conn:
            before = conn.execute("SELECT sql FROM sqlite_master ORDER BY name").fetchall()
        await time_out(a.sync, lambda: a.status().items == 2 or a.status().last_error)
        assert [item for item in await a.get_items() if item != text_message("1")] == [
            text_message("one")
        ]
        with closing(sqlite3.connect(path)) as conn:
            assert conn.execute("SELECT sql FROM sqlite_master ORDER BY name").fetchall() == before
            assert conn.execute("SELECT session_id FROM sessions").fetchall() == [(SESSION,)]
            assert conn.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        await a.close()


ALL_SECONDS = 300.0
"""Seconds for hundreds of calls. A call that waited for the server would wait for its timeout of an
hour."""


@pytest.mark.promise(number=2)
async def test_a_server_that_stops_in_an_event_delays_no_call_and_no_close(
    device: Devices,
) -> None:
    """A stream ends in the middle of an event and stays open, and the server then answers nothing.
    Every call of two hundred open sessions works, and each close keeps its timeout, with requests
    under way."""
    silent = asyncio.Event()

    async def answer(asked: Request) -> None:
        if asked.target == "/v1/events/stream":
            asked.answer(b"", Content_Type="text/event-stream", Content_Length="1000")
            asked.writer.write(b'event: stored\ndata: {"event_type": "stored", "agent_')
        if silent.is_set() or asked.target == "/v1/events/stream":
            await asked.writer.drain()
            await asyncio.sleep(3600)
        asked.answer([] if asked.method == "GET" else {"stored": []})

    options = replace(
        QUICK, listen=True, request_timeout=3600.0, hydrate_timeout=0.2, close_timeout=0.2
    )
    async with hostile_server(answer) as server:
        first = device.new("a", options=options, url=server.url)
        await first.add_items([text_message("before")])
        await wait_until(lambda: any(one.target == "/v1/events/stream" for one in server.asked))
        silent.set()
        others = [
            device.new("a", f"{number}", options=options, url=server.url, hydrate=False)
            for number in range(200)
        ]
        with anyio.fail_after(ALL_SECONDS):
            for session in [first, *others]:
                await session.add_items([text_message("one"), text_message("two")])
                assert await session.pop_item() == text_message("two")
            for session in [first, *others]:
                assert (await session.get_items())[-1] == text_message("one")
                assert (await session.entries(1))[0].item == text_message("one")
                assert session.status().pending >= 1
        with anyio.fail_after(ALL_SECONDS):
            await asyncio.gather(*(session.close() for session in [first, *others]))
