"""A network link that can be cut: a TCP proxy between a device and its server."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit


class Link:
    """Forwards connections to a server while it is up, and drops them while it is not."""

    def __init__(self, server: str) -> None:
        target = urlsplit(server)
        self._host, self._port = str(target.hostname), int(target.port or 80)
        self._open: set[asyncio.StreamWriter] = set()
        self._listener: asyncio.Server | None = None
        self.is_up = True
        self.url = ""

    async def start(self) -> None:
        """Listen on a free port of the loopback interface."""
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._listener.sockets[0].getsockname()[1]}"

    def switch(self, *, up: bool) -> None:
        """Cut everything, or let new connections through again."""
        self.is_up = up
        if not up:
            for writer in list(self._open):
                writer.transport.abort()

    async def close(self) -> None:
        """Stop listening and drop what is open."""
        self.switch(up=False)
        if self._listener is not None:
            self._listener.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            if not self.is_up:
                return
            far_reader, far_writer = await asyncio.open_connection(self._host, self._port)
            self._open.add(far_writer)
            try:
                await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer))
            finally:
                self._open.discard(far_writer)
                far_writer.transport.abort()
        except OSError:
            return  # one end is gone: the other is dropped, as a broken link does
        finally:
            self._open.discard(writer)
            writer.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.transport.abort()
