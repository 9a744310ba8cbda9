"""Lookups of host names in threads of their own, one for each name."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from typing import Any

import httpcore
import httpx
import pytest

from cached_session.options import SyncOptions
from cached_session.remote import dns
from cached_session.remote.dakera import connect

NAME = "server.example"
Tried = list[str]


def resolver(*addresses: str) -> Callable[..., Any]:
    """Return a lookup function that knows these addresses of `NAME`."""

    def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        assert host == NAME
        families = [socket.AF_INET6 if ":" in address else socket.AF_INET for address in addresses]
        return [
            (family, socket.SOCK_STREAM, 6, "", (address, port))
            for family, address in zip(families, addresses, strict=True)
        ]

    return getaddrinfo


class Scripted(httpcore.AsyncNetworkBackend):
    """A network backend whose addresses answer, refuse or stay silent."""

    def __init__(self, **answers: str) -> None:
        self.answers = answers
        self.tried: Tried = []
        self.made: list[httpcore.AsyncMockStream] = []

    async def connect_tcp(self, host: str, *_: Any, **__: Any) -> httpcore.AsyncNetworkStream:
        self.tried.append(host)
        answer = self.answers[f"to_{host[-1]}"]
        if answer == "silent":
            await asyncio.Event().wait()
        if answer == "refuses":
            raise httpcore.ConnectError(f"{host} refuses")
        self.made.append(httpcore.AsyncMockStream([host.encode()]))
        return self.made[-1]


async def connected(backend: Scripted, timeout: float | None = 60.0) -> str:
    """Return the address to which a connection was made."""
    stream = await dns._Backend(backend).connect_tcp(NAME, 80, timeout)
    return (await stream.read(100)).decode()


def test_the_connections_of_a_remote_look_names_up_here() -> None:
    """The library's own client uses this lookup."""
    remote = connect("http://server.example", None, SyncOptions())
    transport: Any = remote._http._http._transport
    assert isinstance(transport, httpx.AsyncHTTPTransport)
    assert isinstance(transport._pool._network_backend, dns._Backend)


def test_the_connections_to_a_proxy_look_names_up_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy is named by a host name as well."""
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.example:3128")
    remote = connect("http://server.example", None, SyncOptions())
    mounted: Any = [one for one in remote._http._http._mounts.values() if one is not None]
    assert mounted
    assert all(isinstance(one._pool._network_backend, dns._Backend) for one in mounted)


async def test_an_address_is_not_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a host name needs a lookup."""
    monkeypatch.setattr(socket, "getaddrinfo", None)
    backend = Scripted(to_1="answers")
    stream = await dns._Backend(backend).connect_tcp("192.0.2.1", 80, 5.0)
    assert await stream.read(100) == b"192.0.2.1"


@pytest.mark.parametrize(
    ("answers", "made", "tried"),
    [
        ({"to_1": "answers"}, "2001:db8::1", ["2001:db8::1"]),
        ({"to_1": "refuses", "to_5": "answers"}, "192.0.2.5", ["2001:db8::1", "192.0.2.5"]),
        ({"to_1": "silent", "to_5": "answers"}, "192.0.2.5", ["2001:db8::1", "192.0.2.5"]),
        (
            {"to_1": "silent", "to_5": "refuses", "to_2": "answers"},
            "2001:db8::2",
            ["2001:db8::1", "192.0.2.5", "2001:db8::2"],
        ),
    ],
)
async def test_the_first_address_that_answers_is_taken(
    monkeypatch: pytest.MonkeyPatch, answers: dict[str, str], made: str, tried: Tried
) -> None:
    """Address families alternate, and a silent address delays the next one only for a moment."""
    resolve = resolver("2001:db8::1", "2001:db8::2", "192.0.2.5")
    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    backend = Scripted(**answers)
    assert await connected(backend) == made
    assert backend.tried == tried


async def test_a_name_without_an_answer_raises_the_usual_errors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If all addresses refuse, stay silent or are unknown, the errors are those of the HTTP
    library."""
    monkeypatch.setattr(socket, "getaddrinfo", resolver("192.0.2.1", "192.0.2.2"))
    with pytest.raises(httpcore.ConnectError, match=r"192\.0\.2\.1 refuses"):
        await connected(Scripted(to_1="refuses", to_2="refuses"))
    silent = Scripted(to_1="silent", to_2="silent")
    for seconds in (0.05, 0.5, 5.0, 50.0):
        with pytest.raises(httpcore.ConnectTimeout) as late:
            await connected(silent, timeout=seconds)
        if silent.tried:  # else its time was over before the name was looked up
            break
    assert "connecting to 192.0.2.1 192" in str(late.value)

    def unknown(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(httpcore.ConnectError, match="not known"):
        await connected(Scripted())
    monkeypatch.setattr(socket, "getaddrinfo", resolver())
    with pytest.raises(httpcore.ConnectError, match="no address"):
        await connected(Scripted())


async def test_concurrent_requests_share_a_lookup(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One thread looks a name up: a cancelled request does not end it for the others, a later one
    starts a new lookup, and one that hangs gets a second thread after a while."""
    asked, answer = 0, threading.Event()
    second = asyncio.Event()
    loop = asyncio.get_running_loop()
    known = resolver("192.0.2.1")

    def slow(*words: Any, **more: Any) -> Any:
        nonlocal asked
        asked += 1
        if asked == 2:
            loop.call_soon_threadsafe(second.set)
        answer.wait(120)
        return known(*words, **more)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    with pytest.raises(httpcore.ConnectTimeout, match=f"looking up {NAME}"):
        await connected(Scripted(), timeout=0.01)
    waiting = [asyncio.ensure_future(connected(Scripted(to_1="answers"))) for _ in range(20)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    await asyncio.wait(waiting[:1])
    assert asked == 1
    assert sum(thread.name == "cached-session-lookup" for thread in threading.enumerate()) == 1
    (going,) = dns._pending.values()
    going.began -= going.patience
    waiting.append(asyncio.ensure_future(connected(Scripted(to_1="answers"))))
    await second.wait()
    (newer,) = dns._pending.values()
    assert newer.patience == 2 * going.patience
    answer.set()
    assert await asyncio.gather(*waiting[1:]) == ["192.0.2.1"] * 20
    assert dns._pending == {}
    assert await connected(Scripted(to_1="answers")) == "192.0.2.1"
    assert asked == 3


async def test_a_connection_that_is_made_too_late_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If two addresses answer at the same moment, one connection remains."""
    monkeypatch.setattr(socket, "getaddrinfo", resolver("192.0.2.1", "192.0.2.2"))
    monkeypatch.setattr(dns, "STAGGER", 0.0)
    both = asyncio.Event()

    class Together(Scripted):
        async def connect_tcp(self, host: str, *_: Any, **__: Any) -> httpcore.AsyncNetworkStream:
            self.tried.append(host)
            if len(self.tried) == 2:
                both.set()
            await both.wait()
            self.made.append(httpcore.AsyncMockStream([host.encode()]))
            return self.made[-1]

    backend = Together()
    assert await connected(backend) in ("192.0.2.1", "192.0.2.2")
    assert sorted(stream._closed for stream in backend.made) == [False, True]
