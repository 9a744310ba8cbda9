"""`DevServer`: the server on a real socket, in a thread of this process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import uvicorn
from starlette.types import Scope

from cached_session.devserver.app import build_app
from cached_session.devserver.auth import ROOT_NAME, Key
from cached_session.devserver.background_jobs import run_due_jobs
from cached_session.devserver.clock import Clock
from cached_session.devserver.emulation import Modes
from cached_session.devserver.faults import FaultPlan
from cached_session.devserver.request_log import LoggedRequest, RequestLog
from cached_session.devserver.routes_system import KEEPALIVE_SECONDS
from cached_session.devserver.state import State
from cached_session.devserver.storage import SqliteStorage

STARTUP_SECONDS = 10.0
"""Maximum number of seconds to wait until the server listens, which normally takes milliseconds."""
SHUTDOWN_ITERATIONS = 4
"""Number of event loop iterations that `stop` waits, so that connections which were just
accepted are closed too."""
TICK_SECONDS = 0.1
"""Seconds between two updates of uvicorn's Date header."""
BACKLOG = 512
"""Maximum number of connections that wait to be accepted."""
BREAK_DELAY_SECONDS = 0.05
"""Seconds before connections are closed, so that the response to the control request is sent."""


class _Server(uvicorn.Server):
    """A uvicorn server that signals when it listens, and that stops immediately, not gracefully."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = threading.Event()
        self._stop_requested: asyncio.Event | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open the listening socket, then signal that connections are accepted."""
        self._stop_requested = asyncio.Event()
        await super().startup(sockets)
        self.listening.set()

    async def main_loop(self) -> None:
        """Tick as uvicorn does, but stop immediately: tests restart the server often."""
        stop_requested = self._stop_requested or asyncio.Event()
        ticks = 0
        while not await self.on_tick(ticks):
            ticks += 1
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(stop_requested.wait(), TICK_SECONDS)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close all sockets; a graceful shutdown would wait forever for event streams."""
        for server in self.servers:
            server.close()
        for listener in sockets or []:
            listener.close()
        # A connection that was just accepted appears only after some iterations of the event loop,
        # and an aborted connection needs a further iteration to close its socket.
        for _ in range(SHUTDOWN_ITERATIONS):
            self.abort()
            await asyncio.sleep(0)

    def request_stop(self) -> None:
        """End the main loop. Call it on the event loop of the server."""
        self.should_exit = True
        if self._stop_requested is not None:
            self._stop_requested.set()

    def abort(self, scope: Scope | None = None) -> None:
        """Abort the connection of one request, or all connections if ``scope`` is None.

        Call this method on the server's event loop.
        """
        for connection in list(self.server_state.connections):
            client = getattr(connection, "client", None)
            matches = scope is None or client == tuple(scope.get("client") or ())
            if matches and connection.transport is not None:
                connection.transport.abort()


class DevServer:
    """A development server in a background thread: Dakera's protocol on a real socket.

    It replaces Dakera in tests and demos. `port=0` binds a free port at the first start and reuses
    it, so that `stop` and `start` restart the server at the same address with the same data. The
    data is in memory or in the SQLite file `data`. Every attribute may be used from any thread,
    whether the server runs or not.

    Args:
        host: Address to bind. Without `api_key`, keep the default, which is loopback.
        port: Port to bind; 0 for a free port.
        data: File that stores the data across processes; None for memory only. The file of another
            program raises `ValueError` and is not changed.
        api_key: Root key; None switches authentication off.
        version: Version to report and to emulate, such as "0.12.3" or "0.11.108".
        modes: Choices for undocumented behaviours; None for the defaults.
        allowed_hosts: Additional values of the Host header that a server without keys accepts.
        keepalive: Seconds between two comments on an event stream without events.
        on_request: Function that gets each finished request. It is called in the thread of the
            server, before the last byte of the response is sent.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        data: str | Path | None = None,
        api_key: str | None = None,
        version: str = "0.12.3",
        modes: Modes | None = None,
        allowed_hosts: Iterable[str] = (),
        keepalive: float = KEEPALIVE_SECONDS,
        on_request: Callable[[LoggedRequest], None] | None = None,
    ) -> None:
        self.host = host
        self.port = port
        self.requests = RequestLog()
        storage = SqliteStorage(data) if data is not None else None
        self.state = State(modes=modes, version=version, storage=storage)
        if api_key is not None:
            self.state.add_key(Key(api_key, name=ROOT_NAME))
        self._allowed_hosts = frozenset(name.lower() for name in (*allowed_hosts, host))
        self._keepalive = keepalive
        self._on_request = on_request
        self._lifecycle_lock = threading.RLock()
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._reservation: socket.socket | None = None

    # Running

    def start(self) -> DevServer:
        """Start the server; on return it accepts connections. Does nothing if the server runs.

        Raises:
            OSError: the address cannot be bound.
            RuntimeError: the server did not listen within `STARTUP_SECONDS`.
        """
        with self._lifecycle_lock:
            if self._thread is not None:
                return self
            listener = self._listen()
            self._server = _Server(self._config())
            self._thread = threading.Thread(
                target=self._run, args=(self._server, listener), name="devserver", daemon=True
            )
            self._thread.start()
            if not self._server.listening.wait(STARTUP_SECONDS):
                raise RuntimeError(
                    f"the development server did not listen within {STARTUP_SECONDS:g} seconds"
                )
            return self

    def _listen(self) -> socket.socket:
        if self._reservation is not None:
            self._reservation.close()
            self._reservation = None
        listener = _bind_socket(self.host, self.port)
        listener.listen(BACKLOG)
        self.port = listener.getsockname()[1]
        return listener

    def _config(self) -> uvicorn.Config:
        app = build_app(
            self.state,
            self.requests,
            abort=self._abort,
            break_soon=self._break_soon,
            allowed_hosts=self._allowed_hosts,
            keepalive=self._keepalive,
            on_request=self._on_request,
        )
        return uvicorn.Config(
            app,
            http="h11",
            ws="none",
            lifespan="off",
            proxy_headers=False,
            server_header=False,
            access_log=False,
            log_config=None,
            log_level="critical",
        )

    def _abort(self, scope: Scope) -> None:
        if self._server is not None:
            self._server.abort(scope)

    def _run(self, server: _Server, listener: socket.socket) -> None:
        async def main() -> None:
            self._loop = asyncio.get_running_loop()
            await server.serve(sockets=[listener])

        asyncio.run(main())

    def stop(self) -> None:
        """Close all connections and refuse new connections; keep data and port for `start`."""
        with self._lifecycle_lock:
            if self._thread is None or self._server is None:
                return
            server, loop = self._server, self._loop
            if loop is not None:
                # RuntimeError: the loop has already ended and is closed.
                with contextlib.suppress(RuntimeError):
                    loop.call_soon_threadsafe(server.request_stop)
            self._thread.join()
            self._server = self._thread = self._loop = None
            # A bound socket that does not listen refuses connections and reserves the port.
            self._reservation = _bind_socket(self.host, self.port)

    def close(self) -> None:
        """Stop the server and release the port and the data file; it cannot be started again."""
        with self._lifecycle_lock:
            self.stop()
            if self._reservation is not None:
                self._reservation.close()
                self._reservation = None
            self.state.close()

    def restart(self) -> None:
        """Stop and start the server: its connections are closed, its data does not change."""
        with self._lifecycle_lock:
            self.stop()
            self.start()

    def disconnect(self) -> None:
        """Close every open connection, event streams included; new connections are accepted."""
        with self._lifecycle_lock:
            if self._server is not None and self._loop is not None:
                self._loop.call_soon_threadsafe(self._server.abort)

    def refuse(self, seconds: float) -> None:
        """Refuse connections for `seconds`; on return the server accepts them again."""
        with self._lifecycle_lock:
            self.stop()
            time.sleep(seconds)
            self.start()

    def _break_soon(self, seconds: float | None) -> None:
        """Close all connections after the current response.

        With `seconds`, refuse new connections for that time.
        """

        def break_connections() -> None:
            time.sleep(BREAK_DELAY_SECONDS)
            if seconds is None:
                self.disconnect()
            else:
                self.refuse(seconds)

        threading.Thread(target=break_connections, name="devserver-break", daemon=True).start()

    def __enter__(self) -> DevServer:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def is_running(self) -> bool:
        """Return whether the server runs."""
        return self._thread is not None

    @property
    def url(self) -> str:
        """Return the base URL for clients; it is known after the first start."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    # Control and inspection

    @property
    def faults(self) -> FaultPlan:
        """Return the fault plan."""
        return self.state.faults

    @property
    def clock(self) -> Clock:
        """Return the clock of the server."""
        return self.state.clock

    @property
    def modes(self) -> Modes:
        """Return the modes; assign other modes to change them while the server runs."""
        return self.state.modes

    @modes.setter
    def modes(self, modes: Modes) -> None:
        with self.state.lock:
            self.state.modes = modes

    def agents(self) -> list[str]:
        """Return the ids of all agents."""
        with self.state.lock:
            return list(self.state.agents)

    def memories(self, agent_id: str, *, with_children: bool = False) -> list[dict[str, Any]]:
        """Return copies of the current memories of an agent, newest first; faults do not apply."""
        with self.state.lock:
            run_due_jobs(self.state)
            memories = self.state.agents.get(agent_id)
            if memories is None:
                return []
            return [dict(record.doc) for record in memories.newest(with_children=with_children)]

    def evict(self, agent_id: str, which: Callable[[dict[str, Any]], bool] | Iterable[str]) -> int:
        """Delete memories by a predicate or by ids, without events; return the number of deletions.

        The predicate gets the JSON object of a memory.
        """
        return self.state.evict(agent_id, which)

    def snapshot(self) -> str:
        """Take a backup of all data and return its name."""
        return self.state.snapshot()

    def restore(self, name: str) -> None:
        """Replace all data with a backup.

        Raises:
            KeyError: the backup is unknown.
        """
        self.state.restore(name)

    def reset(self) -> None:
        """Delete all data, faults and logged requests; keep keys, modes, clock and port."""
        self.state.reset()
        self.faults.clear()
        self.requests.clear()

    def add_key(
        self,
        secret: str,
        scope: str = "write",
        namespaces: list[str] | None = None,
        *,
        name: str = "test",
        expires_at: int | None = None,
    ) -> Key:
        """Add an API key; the first key switches authentication on."""
        return self.state.add_key(Key(secret, scope, namespaces, name, expires_at))

    def remove_key(self, secret: str) -> None:
        """Remove an API key; without any key, authentication is off."""
        self.state.remove_key(secret)


def _bind_socket(host: str, port: int) -> socket.socket:
    """Return a bound socket that does not listen yet."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With an explicit protocol, asyncio switches Nagle's algorithm off on accepted connections.
    # Without it, a response in two writes waits 40 ms for the client's delayed acknowledgement.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":
            # Without this option, old connections in TIME_WAIT would block the port for a minute.
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except BaseException:
        bound.close()
        raise
    return bound
