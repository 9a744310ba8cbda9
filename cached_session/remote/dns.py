"""Names of servers, looked up in threads that nobody waits for.

A lookup cannot be ended. The pool that an event loop brings along is small and everybody's, and its
threads are waited for at the end of `asyncio.run` and of the process: a resolver that hangs would
take it from the program's own work, one thread an attempt, and hold the end up. Here a name that is
being looked up has one thread, whoever asks for it meanwhile, and another one only later and later;
the process ends without them.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import chain, zip_longest
from typing import Any

import anyio
import httpcore
import httpx

from cached_session import fork_safety

__all__ = ["look_up_aside"]

STAGGER = 0.25
"""Seconds that one address has for itself before the next one is tried beside it (RFC 8305)."""

PATIENCE = 30.0
"""Seconds after which a lookup without an answer has another one beside it: it may never have one.
Doubled each time, so that a resolver that is stuck for a day has eleven threads of ours."""


@dataclass
class _Lookup:
    began: float
    patience: float = PATIENCE
    outcome: Future[list[str]] = field(default_factory=Future)


_going: dict[tuple[int, str, int], _Lookup] = {}
"""The last lookup of a name that is under way, by process: a thread does not survive a fork."""
_guard = threading.Lock()
fork_safety.wait_for(_guard, _guard)


def look_up_aside(client: httpx.AsyncClient) -> None:
    """Have a client's connections, to proxies too, look names up here."""
    for transport in (client._transport, *client._mounts.values()):
        pool = getattr(transport, "_pool", None)
        if isinstance(pool, httpcore.AsyncConnectionPool):
            pool._network_backend = _Backend(pool._network_backend)


class _Backend(httpcore.AsyncNetworkBackend):
    """Another backend's connections, to addresses instead of names."""

    def __init__(self, inner: httpcore.AsyncNetworkBackend) -> None:
        self._inner = inner

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to the first address of a name that answers.

        Raises:
            ConnectError, ConnectTimeout: there is none.
        """

        async def connect(address: str) -> httpcore.AsyncNetworkStream:
            return await self._inner.connect_tcp(address, port, None, local_address, socket_options)

        step = f"looking up {host}"
        try:
            with anyio.fail_after(timeout):
                addresses = [host] if _is_address(host) else await _addresses(host, port)
                if not addresses:
                    raise OSError(f"{host} has no address")
                step = f"connecting to {' '.join(addresses)}"
                return await _first(addresses, connect)
        except TimeoutError as error:
            raise httpcore.ConnectTimeout(f"{step} took longer than {timeout:g} s") from error
        except OSError as error:
            raise httpcore.ConnectError(str(error)) from error

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """As the other backend does."""
        return await self._inner.connect_unix_socket(path, timeout, socket_options)

    async def sleep(self, seconds: float) -> None:
        """As the other backend does."""
        await self._inner.sleep(seconds)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


async def _addresses(host: str, port: int) -> list[str]:
    """The addresses of a name, each once. A caller that is cancelled leaves the lookup to others.

    Raises:
        OSError: they could not be looked up.
    """
    return await asyncio.wrap_future(_lookup(host, port).outcome)


def _lookup(host: str, port: int) -> _Lookup:
    """The lookup of a name that is under way; a fresh one if there is none, or it hangs."""
    key, now = (os.getpid(), host, port), time.monotonic()
    with _guard:
        going = _going.get(key)
        if going is not None and now - going.began < going.patience:
            return going
        fresh = _Lookup(now) if going is None else _Lookup(now, going.patience * 2)
        _going[key] = fresh
    # From here on nobody who waits for it, and is cancelled, can cancel it for the others.
    fresh.outcome.set_running_or_notify_cancel()
    threading.Thread(
        target=_look_up, args=(key, fresh), name="cached-session-lookup", daemon=True
    ).start()
    return fresh


def _look_up(key: tuple[int, str, int], lookup: _Lookup) -> None:
    _, host, port = key
    found: list[str] = []
    error: Exception | None = None
    try:
        rows = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        found = _in_turn([(int(row[0]), str(row[4][0])) for row in rows])
    except Exception as raised:  # noqa: BLE001 - whoever waits for it is told
        error = raised
    with _guard:
        if _going.get(key) is lookup:
            del _going[key]
    if error is not None:
        lookup.outcome.set_exception(error)
    else:
        lookup.outcome.set_result(found)


def _in_turn(found: Sequence[tuple[int, str]]) -> list[str]:
    """Addresses as the resolver orders them, one of each family in turn: where one of the two leads
    nowhere, the other is not tried last."""
    families = dict.fromkeys(family for family, _ in found)
    each = ([address for of, address in found if of == family] for family in families)
    mixed = chain.from_iterable(zip_longest(*each))
    return list(dict.fromkeys(address for address in mixed if address is not None))


async def _first(
    addresses: Sequence[str], connect: Callable[[str], Awaitable[httpcore.AsyncNetworkStream]]
) -> httpcore.AsyncNetworkStream:
    """The first connection that is made; those to later addresses begin a moment later each.

    Raises:
        ConnectError: none can be made; the first address's error.
    """
    made: list[httpcore.AsyncNetworkStream] = []
    errors: dict[str, httpcore.ConnectError | httpcore.ConnectTimeout] = {}

    async def attempt(address: str, ended: anyio.Event) -> None:
        try:
            made.append(await connect(address))
            group.cancel_scope.cancel()
        except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
            errors[address] = error
        finally:
            ended.set()

    try:
        async with anyio.create_task_group() as group:
            for address in addresses:
                ended = anyio.Event()
                group.start_soon(attempt, address, ended)
                with anyio.move_on_after(STAGGER):
                    await ended.wait()
        if not made:
            raise errors[addresses[0]]
        return made.pop(0)
    finally:
        # Two may have been made at one moment; or somebody was cancelled in the last one.
        with anyio.CancelScope(shield=True):
            for stream in made:
                await stream.aclose()
