"""The line between one device and its server: a TCP proxy that cuts, stalls and slows.

It stands between, so that the server knows nothing of it, and each device can have a line of its
own: a partition is one that is cut and another that is not.
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
"""Connections that may wait to be accepted."""
PATIENCE_SECONDS = 10.0
"""Longest wait for the proxy's thread; it takes milliseconds."""
Action = Callable[[], "list[asyncio.Task[None]]"]
"""Something done on the proxy's thread; it has happened when the tasks that it returns end."""


class Network:
    """A line to a server at ``url``; point a session at this `url` instead.

    Every method may be called from any thread, and has happened when it returns. Those that break
    something also undo it at the end of a ``with``: after ``with network.cut(): ...`` connections
    get through as if nothing had been.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._there = (parts.hostname or "127.0.0.1", parts.port or 80)
        self._listener = _listening()
        self.url = "http://{}:{}".format(*self._listener.getsockname()[:2])
        """Where a session reaches the server over this line."""
        self._is_cut = False
        self._delay = 0.0
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._lines: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._run, name="cached-session-network", daemon=True
        )
        self._thread.start()

    # -- what can go wrong -----------------------------------------------------------------------

    def cut(self) -> contextlib.AbstractContextManager[None]:
        """Break every connection, and each new one at once, until `mend`."""

        def now() -> list[asyncio.Task[None]]:
            self._is_cut = True
            return self._break()

        return self._undone(now)

    def stall(self) -> contextlib.AbstractContextManager[None]:
        """Let connections be made and nothing come through, until `mend`: the worst kind of
        outage, which only a timeout tells from a slow answer. What was sent meanwhile arrives
        later, unless its sender gave up."""

        def now() -> list[asyncio.Task[None]]:
            self._flowing.clear()
            return []

        return self._undone(now)

    def slow(self, seconds: float) -> contextlib.AbstractContextManager[None]:
        """Hold every piece of data up for that long, in both directions, until `mend`."""

        def now() -> list[asyncio.Task[None]]:
            self._delay = seconds
            return []

        return self._undone(now)

    def disconnect(self) -> None:
        """Break every connection; new ones get through."""
        self._do(self._break)

    def mend(self) -> None:
        """Everything gets through again, without delay."""
        self._do(self._mend)

    def close(self) -> None:
        """Take the line away. Idempotent."""
        if self._thread.is_alive():
            self._do(self._break)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        self._listener.close()

    def __enter__(self) -> Network:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # -- on the proxy's thread -------------------------------------------------------------------

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        accepting = self._loop.create_task(self._accept())
        try:
            self._loop.run_forever()
        finally:
            waiting = [accepting, *self._lines]
            for task in waiting:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*waiting, return_exceptions=True))
            self._loop.close()

    async def _accept(self) -> None:
        while True:
            here, _ = await self._loop.sock_accept(self._listener)
            if self._is_cut:
                _reset(here)
                continue
            line = self._loop.create_task(self._line(here))
            self._lines.add(line)
            line.add_done_callback(self._lines.discard)

    async def _line(self, here: socket.socket) -> None:
        there: socket.socket | None = None
        try:
            there = socket.socket(
                socket.AF_INET6 if ":" in self._there[0] else socket.AF_INET, socket.SOCK_STREAM
            )
            for end in (here, there):
                end.setblocking(False)
                # Two small writes must not wait for each other's acknowledgement.
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await self._flowing.wait()
            await self._loop.sock_connect(there, self._there)
            await self._both_ways(here, there)
        except OSError:
            pass  # one end is gone: the other is told below, and that is all a line can do
        finally:
            _reset(here)
            if there is not None:
                _reset(there)

    async def _both_ways(self, here: socket.socket, there: socket.socket) -> None:
        ways = [
            self._loop.create_task(self._carry(source, sink))
            for source, sink in ((here, there), (there, here))
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            # Nobody may wait at a socket any more when it is closed.
            for way in ways:
                way.cancel()
            await asyncio.wait(ways)
        for way in ways:
            if not way.cancelled():
                way.result()

    async def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        while data := await self._loop.sock_recv(source, CHUNK_BYTES):
            if self._delay:
                await asyncio.sleep(self._delay)
            await self._flowing.wait()
            await self._loop.sock_sendall(sink, data)
        sink.shutdown(socket.SHUT_WR)

    def _break(self) -> list[asyncio.Task[None]]:
        lines = list(self._lines)
        for line in lines:
            line.cancel()
        return lines

    def _mend(self) -> list[asyncio.Task[None]]:
        self._is_cut, self._delay = False, 0.0
        self._flowing.set()
        return []

    # -- from any thread -------------------------------------------------------------------------

    def _undone(self, action: Action) -> contextlib.AbstractContextManager[None]:
        self._do(action)

        @contextlib.contextmanager
        def until_the_end() -> Iterator[None]:
            try:
                yield
            finally:
                self.mend()

        return until_the_end()

    def _do(self, action: Action) -> None:
        async def there() -> None:
            ending = action()
            if ending:
                await asyncio.wait(ending)

        asyncio.run_coroutine_threadsafe(there(), self._loop).result(PATIENCE_SECONDS)


def _listening() -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.bind(("127.0.0.1", 0))
    listener.listen(BACKLOG)
    listener.setblocking(False)
    return listener


def _reset(end: socket.socket) -> None:
    """Close as a broken line does: with a reset, and whatever was under way is lost."""
    # SO_LINGER on, for no time: two integers.
    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    end.close()
