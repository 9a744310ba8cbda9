"""The faults between a device and its server: a TCP proxy, a resolver and a table of faults.

The tests run each fault of the table, and `benchmarks/fault_cost.py` measures the cost of a call
under each.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import ipaddress
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cached_session.devserver import DevServer

__all__ = ["FAULTS", "NAME", "Fault", "Line", "Names"]

NAME = "localhost"
"""The host name of the server in faults of name resolution. A server without a key answers to no
other."""
PORTAL = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: 35\r\n\r\n"
    b"<html><h1>Welcome, guest</h1></html"
)
TOO_LARGE = (
    b"HTTP/1.1 413 Request Entity Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
)
DRIP_SECONDS = 0.1


class Line:
    """A TCP proxy before a server, which treats each connection according to its mode."""

    def __init__(self, server: DevServer, certificates: Path | None = None) -> None:
        self.server = server
        self.mode = "pass"
        self.most_bytes: int | None = None
        """The length above which a request body is answered with 413, as some proxies do."""
        self.tls = None if certificates is None else _Certificates(certificates)
        self.backup = ""
        """A snapshot of the server, for the fault that restores it."""
        self._port = 0
        self._serving: asyncio.Server | None = None
        self._reservation: socket.socket | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._dead: set[asyncio.StreamWriter] = set()

    def url(self, host: str = "127.0.0.1") -> str:
        """The URL of the server through this line."""
        return f"{'https' if self.tls else 'http'}://{host}:{self._port}"

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Line]:
        """Accept connections until the end."""
        await self.listen()
        try:
            yield self
        finally:
            await self.refuse()
            if self._reservation is not None:
                self._reservation.close()

    async def listen(self) -> None:
        """Accept connections."""
        if self._reservation is not None:
            self._reservation.close()
            self._reservation = None
        context = self.tls.context if self.tls else None
        self._serving = await asyncio.start_server(
            self._serve, "127.0.0.1", self._port, ssl=context
        )
        self._port = self._serving.sockets[0].getsockname()[1]

    async def refuse(self) -> None:
        """Refuse connections and keep the port."""
        self.cut()
        if self._serving is not None:
            self._serving.close()
            self._serving = None
            self._reservation = socket.socket()
            self._reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._reservation.bind(("127.0.0.1", self._port))

    def cut(self) -> None:
        """Reset the open connections, as a middlebox does that has dropped its state."""
        for writer in list(self._open):
            writer.transport.abort()

    def blackhole(self) -> None:
        """Drop everything on the open connections without closing them, as after a peer that
        vanished. New connections work."""
        self._dead |= self._open

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        mode, away = self.mode, None
        try:
            if mode == "black hole":
                await asyncio.sleep(3600)
            far, away = await asyncio.open_connection("127.0.0.1", self.server.port)
            self._open.add(away)
            asked = asyncio.ensure_future(self._ask(reader, away, writer))
            try:
                await self._answer(far, writer, mode)
            finally:
                asked.cancel()
                await asyncio.wait([asked])
        except (OSError, asyncio.CancelledError):
            pass  # One side closed the connection, which the faults cause on purpose.
        finally:
            for end in (writer, away):
                if end is not None:
                    self._open.discard(end)
                    self._dead.discard(end)
                    end.transport.abort()

    async def _ask(
        self, reader: asyncio.StreamReader, away: asyncio.StreamWriter, back: asyncio.StreamWriter
    ) -> None:
        with contextlib.suppress(OSError):
            while piece := await reader.read(65_536):
                if back in self._dead:
                    continue
                if self.most_bytes is not None and _length(piece) > self.most_bytes:
                    back.write(TOO_LARGE)
                    await back.drain()
                    return
                away.write(piece)
                await away.drain()
            away.transport.abort()

    async def _answer(
        self, far: asyncio.StreamReader, writer: asyncio.StreamWriter, mode: str
    ) -> None:
        while piece := await far.read(65_536):
            if mode == "half open":
                continue  # The server has answered, and the answer is dropped.
            if mode == "portal":
                writer.write(PORTAL)
                await writer.drain()
                continue
            if mode == "reset":
                writer.write(piece[: len(piece) // 2])
                await writer.drain()
                return
            if mode == "loris":
                for byte in piece:
                    if writer.is_closing():
                        return
                    writer.write(bytes([byte]))
                    await asyncio.sleep(DRIP_SECONDS)
                continue
            writer.write(piece)
            await writer.drain()
        if writer in self._dead:
            await asyncio.sleep(3600)  # The close of the server is not forwarded either.


def _length(head: bytes) -> int:
    """Return the announced length of a body when the data begins a request."""
    for line in head.partition(b"\r\n\r\n")[0].lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    return 0


class Names:
    """The resolver of this process under a fault: it resolves `NAME`, fails, or hangs."""

    def __init__(self) -> None:
        self.mode = "known"
        self.waiting = threading.Event()
        """Set to fail the waiting lookups."""
        self.hanging = 0
        """The number of waiting lookups, each in its own thread."""

    @contextmanager
    def patched(self) -> Iterator[Names]:
        """Replace the real resolver until the end."""
        real: Any = socket.getaddrinfo

        def getaddrinfo(host: Any, *rest: Any, **more: Any) -> Any:
            if host not in (NAME, NAME.encode()):
                return real(host, *rest, **more)
            if self.mode == "hangs":
                self.hanging += 1
                self.waiting.wait(60)
            if self.mode != "known":
                raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
            return real("127.0.0.1", *rest, **more)

        socket.getaddrinfo = getaddrinfo
        try:
            yield self
        finally:
            socket.getaddrinfo = real
            self.waiting.set()


class _Certificates:
    """A certificate that the test trusts (`trusted`, for ``SSL_CERT_FILE``) and an untrusted
    one."""

    def __init__(self, directory: Path) -> None:
        self.trusted, self._stranger = directory / "trusted.pem", directory / "stranger.pem"
        for path in (self.trusted, self._stranger):
            path.write_bytes(_certificate())
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.use(trusted=True)

    def use(self, *, trusted: bool) -> None:
        """Select the certificate for new connections."""
        self.context.load_cert_chain(self.trusted if trusted else self._stranger)


def _certificate() -> bytes:
    """Create a key and a self-signed certificate for this machine."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a test's server")])
    now = dt.datetime.now(dt.timezone.utc)
    day = dt.timedelta(days=1)
    here = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - day)
        .not_valid_after(now + day)
        .add_extension(here, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(pem, form, plain) + made.public_bytes(pem)


@dataclass(frozen=True)
class Fault:
    """A row of the table: how a fault begins and ends, and what the status reports."""

    name: str
    begin: Callable[[Line, Names], Any]
    end: Callable[[Line, Names], Any]
    says: str | None
    """The reason in the status, or None where the server still answers."""
    host: str = "127.0.0.1"
    tls: bool = False


def _mode(name: str) -> Callable[[Line, Names], Any]:
    def begin(line: Line, _: Names) -> None:
        line.mode = name
        line.cut()

    return begin


async def _refused(line: Line, _: Names) -> None:
    await line.refuse()


async def _listening(line: Line, _: Names) -> None:
    await line.listen()


async def _restarted_dead(line: Line, names: Names) -> None:
    """Restart the server without closing the connections of the device."""
    line.blackhole()
    await asyncio.to_thread(line.server.restart)


async def _restarted_empty(line: Line, _: Names) -> None:
    await asyncio.to_thread(line.server.stop)
    line.server.reset()
    await asyncio.to_thread(line.server.start)


async def _restored(line: Line, _: Names) -> None:
    await asyncio.to_thread(line.server.stop)
    line.server.restore(line.backup)
    await asyncio.to_thread(line.server.start)


def _named(mode: str) -> Callable[[Line, Names], Any]:
    def begin(line: Line, names: Names) -> None:
        names.mode = mode
        names.waiting.clear()
        line.cut()

    return begin


def _known(_: Line, names: Names) -> None:
    names.mode = "known"
    names.waiting.set()


def _shown(*, trusted: bool) -> Callable[[Line, Names], Any]:
    def begin(line: Line, _: Names) -> None:
        assert line.tls is not None
        line.tls.use(trusted=trusted)
        line.cut()

    return begin


def _nothing(_: Line, __: Names) -> None: ...


FAULTS = [
    Fault("refused", _refused, _listening, "(?i)connect"),
    Fault("black hole", _mode("black hole"), _mode("pass"), "(?i)no answer|timeout"),
    Fault("half open", _mode("half open"), _mode("pass"), "(?i)no answer|timeout"),
    Fault("slow loris", _mode("loris"), _mode("pass"), "no answer"),
    Fault(
        "reset in mid-answer", _mode("reset"), _mode("pass"), "(?i)closed|disconnected|reset|read"
    ),
    Fault("wrong content type", _mode("portal"), _mode("pass"), "is this a Dakera server"),
    Fault("TLS failure", _shown(trusted=False), _shown(trusted=True), "(?i)certificate", tls=True),
    Fault("DNS failure", _named("fails"), _known, "(?i)name resolution", host=NAME),
    Fault("DNS that hangs", _named("hangs"), _known, "(?i)timeout|no answer", host=NAME),
    Fault("half open across a restart", _restarted_dead, _nothing, None),
    Fault("a server that restarts empty", _restarted_empty, _nothing, None),
    Fault("a server restored from an old backup", _restored, _nothing, None),
    Fault("idle connections cut by a middlebox", lambda line, _: line.cut(), _nothing, None),
]
