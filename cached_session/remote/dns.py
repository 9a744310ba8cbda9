"""Name lookups in separate daemon threads, one thread for each name.

A lookup cannot be cancelled. The event loop's default thread pool is small and shared with the
program. `asyncio.run` and the end of the process wait for the threads of that pool. If the resolver
hangs, each connection attempt would therefore occupy one of these threads and delay the end of the
process.

In this module all connections to one name share one lookup. A lookup that hangs is started again in
another thread, after a pause that doubles each time. The process ends without waiting for lookups.
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

__all__ = ["use_own_lookups"]

STAGGER = 0.25
"""Seconds to wait for one address before the next address is tried in parallel (RFC 8305)."""

PATIENCE = 30.0
"""Seconds after which an unanswered lookup is started again, because it may never end. The time
doubles with each start, so a resolver that hangs for a day occupies only eleven threads."""


@dataclass
class _Lookup:
    """One lookup of a name. It runs in its own thread."""

    began: float
    patience: float = PATIENCE
    outcome: Future[list[str]] = field(default_factory=Future)


_pending: dict[tuple[int, str, int], _Lookup] = {}
"""Newest unfinished lookup of each host and port. The key includes the process id, because a thread
does not survive a fork."""
_lock = threading.Lock()
fork_safety.wait_for(_lock, _lock)


def use_own_lookups(client: httpx.AsyncClient) -> None:
    """Make all connections of a client, including those to proxies, use this module's lookups."""
    for transport in (client._transport, *client._mounts.values()):
        pool = getattr(transport, "_pool", None)
        if isinstance(pool, httpcore.AsyncConnectionPool):
            pool._network_backend = _Backend(pool._network_backend)


class _Backend(httpcore.AsyncNetworkBackend):
    """A network backend that looks up names itself, and connects through an inner backend."""

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
        """Connect to the address of ``host`` that accepts a connection first.

        Raises:
            ConnectError: ``host`` has no address, or none of its addresses accepts a connection.
            ConnectTimeout: no connection was made within ``timeout`` seconds.
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
                return await _connect_first(addresses, connect)
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
        """Connect through the inner backend."""
        return await self._inner.connect_unix_socket(path, timeout, socket_options)

    async def sleep(self, seconds: float) -> None:
        """Sleep through the inner backend."""
        await self._inner.sleep(seconds)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


async def _addresses(host: str, port: int) -> list[str]:
    """Return the addresses of a name, each once. Cancelling a caller does not cancel the lookup.

    Raises:
        OSError: the lookup failed.
    """
    return await asyncio.wrap_future(_lookup(host, port).outcome)


def _lookup(host: str, port: int) -> _Lookup:
    """Return the unfinished lookup of a name.

    Start a new lookup if the name has no unfinished lookup, or if the unfinished lookup hangs.
    """
    key, now = (os.getpid(), host, port), time.monotonic()
    with _lock:
        going = _pending.get(key)
        if going is not None and now - going.began < going.patience:
            return going
        fresh = _Lookup(now) if going is None else _Lookup(now, going.patience * 2)
        _pending[key] = fresh
    # Mark the future as running, because a running future cannot be cancelled. Otherwise a caller
    # that is cancelled would also cancel the lookup for the other callers.
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
        found = _interleave_families([(int(row[0]), str(row[4][0])) for row in rows])
    except Exception as raised:  # noqa: BLE001 - raised again by each caller that waits for it
        error = raised
    with _lock:
        if _pending.get(key) is lookup:
            del _pending[key]
    if error is not None:
        lookup.outcome.set_exception(error)
    else:
        lookup.outcome.set_result(found)


def _interleave_families(found: Sequence[tuple[int, str]]) -> list[str]:
    """Return addresses in the resolver's order, alternating between IPv4 and IPv6.

    If one family does not work, the second attempt already uses the other family.
    """
    families = dict.fromkeys(family for family, _ in found)
    each = ([address for of, address in found if of == family] for family in families)
    mixed = chain.from_iterable(zip_longest(*each))
    return list(dict.fromkeys(address for address in mixed if address is not None))


async def _connect_first(
    addresses: Sequence[str], connect: Callable[[str], Awaitable[httpcore.AsyncNetworkStream]]
) -> httpcore.AsyncNetworkStream:
    """Return the first connection that succeeds.

    The attempt for the next address starts when the attempt before it fails, or after `STAGGER`
    seconds.

    Raises:
        ConnectError: no attempt succeeded. This is the error of the first address.
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
        # Close unused connections: two attempts may succeed at the same time, and an attempt may
        # succeed while this call is cancelled.
        with anyio.CancelScope(shield=True):
            for stream in made:
                await stream.aclose()
