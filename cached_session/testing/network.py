"""The network between one device and the server: a TCP proxy that cuts, stalls and delays.

The faults happen in the proxy, not in the server. Each device can have its own proxy, so a test can
cut off one device while another stays connected.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

__all__ = ["Network"]

CHUNK_BYTES = 64 * 1024
BACKLOG = 128
"""Maximum number of connections that wait to be accepted."""
THREAD_TIMEOUT_SECONDS = 10.0
"""Maximum number of seconds to wait until the proxy's thread has started or ended. Both normally
take milliseconds."""
Action = Callable[[], "list[asyncio.Task[None]]"]
"""Function that changes the proxy. The change is complete when the returned tasks have ended."""


class Network:
    """A network to the server at ``url``. Pass the attribute `url` to sessions instead.

    Every method can be called from any thread, and has taken effect when it returns. `cut`, `stall`
    and `slow` can be used in a ``with`` statement, which calls `mend` at its end.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._server_address = (parts.hostname or "127.0.0.1", parts.port or 80)
        self._listener = _listen()
        self.url = "http://{}:{}".format(*self._listener.getsockname()[:2])
        """URL of the server through this network."""
        self._is_cut = False
        self._delay = 0.0
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._connections: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._run, name="cached-session-network", daemon=True
        )
        self._thread.start()

    # Faults

    def cut(self) -> contextlib.AbstractContextManager[None]:
        """Reset every open connection, and every new connection until `mend` is called."""

        def change() -> list[asyncio.Task[None]]:
            self._is_cut = True
            return self._reset_connections()

        return self._until_mended(change)

    def stall(self) -> contextlib.AbstractContextManager[None]:
        """Accept connections but deliver no data until `mend`.

        A client needs a timeout to distinguish a stalled network from a slow response. Data that
        was sent before `mend` is delivered after it, unless its sender has closed the connection.
        """

        def change() -> list[asyncio.Task[None]]:
            self._flowing.clear()
            return []

        return self._until_mended(change)

    def slow(self, seconds: float) -> contextlib.AbstractContextManager[None]:
        """Delay each piece of data by ``seconds``, in both directions, until `mend`."""

        def change() -> list[asyncio.Task[None]]:
            self._delay = seconds
            return []

        return self._until_mended(change)

    def disconnect(self) -> None:
        """Reset every connection; new connections are accepted."""
        self._run_in_thread(self._reset_connections)

    def mend(self) -> None:
        """Accept connections and deliver data again, without delay."""
        self._run_in_thread(self._mend)

    def close(self) -> None:
        """Reset all connections and stop the proxy. A repeated call has no effect."""
        if self._thread.is_alive():
            self._run_in_thread(self._reset_connections)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        self._listener.close()

    def __enter__(self) -> Network:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # In the thread of the proxy

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        accepting = self._loop.create_task(self._accept())
        try:
            self._loop.run_forever()
        finally:
            waiting = [accepting, *self._connections]
            for task in waiting:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*waiting, return_exceptions=True))
            self._loop.close()

    async def _accept(self) -> None:
        while True:
            client, _ = await self._loop.sock_accept(self._listener)
            if self._is_cut:
                _reset(client)
                continue
            connection = self._loop.create_task(self._connect(client))
            self._connections.add(connection)
            connection.add_done_callback(self._connections.discard)

    async def _connect(self, client: socket.socket) -> None:
        """Connect to the server and forward data until one end closes the connection."""
        server: socket.socket | None = None
        try:
            is_ipv6 = ":" in self._server_address[0]
            family = socket.AF_INET6 if is_ipv6 else socket.AF_INET
            server = socket.socket(family, socket.SOCK_STREAM)
            for end in (client, server):
                end.setblocking(False)
                # A small write must not wait for the acknowledgement of the previous write.
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await self._flowing.wait()
            await self._loop.sock_connect(server, self._server_address)
            await self._forward_both(client, server)
        except OSError:
            pass  # one end has closed the connection: the code below resets the other end
        finally:
            _reset(client)
            if server is not None:
                _reset(server)

    async def _forward_both(self, client: socket.socket, server: socket.socket) -> None:
        """Forward data in both directions until both directions have ended or one has failed."""
        directions = [
            self._loop.create_task(self._forward(source, sink))
            for source, sink in ((client, server), (server, client))
        ]
        try:
            await asyncio.wait(directions, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            # A task must not wait for a socket when the socket is closed.
            for direction in directions:
                direction.cancel()
            await asyncio.wait(directions)
        for direction in directions:
            if not direction.cancelled():
                direction.result()

    async def _forward(self, source: socket.socket, sink: socket.socket) -> None:
        while data := await self._loop.sock_recv(source, CHUNK_BYTES):
            if self._delay:
                await asyncio.sleep(self._delay)
            await self._flowing.wait()
            await self._loop.sock_sendall(sink, data)
        sink.shutdown(socket.SHUT_WR)

    def _reset_connections(self) -> list[asyncio.Task[None]]:
        connections = list(self._connections)
        for connection in connections:
            connection.cancel()
        return connections

    def _mend(self) -> list[asyncio.Task[None]]:
        self._is_cut, self._delay = False, 0.0
        self._flowing.set()
        return []

    # From any thread

    def _until_mended(self, action: Action) -> contextlib.AbstractContextManager[None]:
        """Do the action now; return a context manager that calls `mend` at its end."""
        self._run_in_thread(action)

        @contextlib.contextmanager
        def mend_at_end() -> Iterator[None]:
            try:
                yield
            finally:
                self.mend()

        return mend_at_end()

    def _run_in_thread(self, action: Action) -> None:
        """Do the action in the thread of the proxy, and wait until it is complete."""

        async def run() -> None:
            tasks = action()
            if tasks:
                await asyncio.wait(tasks)

        asyncio.run_coroutine_threadsafe(run(), self._loop).result(THREAD_TIMEOUT_SECONDS)


def _listen() -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.bind(("127.0.0.1", 0))
    listener.listen(BACKLOG)
    listener.setblocking(False)
    return listener


def _reset(end: socket.socket) -> None:
    """Close a socket with a TCP reset, as a broken network does; unsent data is lost."""
    # The value is two integers: SO_LINGER on, for 0 seconds.
    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    end.close()
