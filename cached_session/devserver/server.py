"""Running the server on a real socket, in a thread of this process."""

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
from cached_session.devserver.background_jobs import housekeeping
from cached_session.devserver.clock import Clock
from cached_session.devserver.emulation import Modes
from cached_session.devserver.fault_middleware import LoggedRequest, RequestLog
from cached_session.devserver.faults import FaultPlan
from cached_session.devserver.routes_system import KEEPALIVE_SECONDS
from cached_session.devserver.state import State
from cached_session.devserver.storage import FileJournal

STARTUP_SECONDS = 10.0
"""Longest wait for the listening socket; it takes milliseconds."""
TURNS = 4
"""Of the event loop, in which a connection comes or goes."""
TICK_SECONDS = 0.1
"""How often uvicorn renews its Date header."""
BACKLOG = 512
"""Connections that may wait to be accepted."""
BREAK_DELAY_SECONDS = 0.05
"""Lets the answer to the command leave before the connections close."""


class _Server(uvicorn.Server):
    """Uvicorn that says when it listens, and that stops at once instead of gracefully."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = threading.Event()
        self._leaving: asyncio.Event | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open the server, then let `start` return."""
        self._leaving = asyncio.Event()
        await super().startup(sockets)
        self.listening.set()

    async def main_loop(self) -> None:
        """Tick as uvicorn does, but wake up to leave: a test restarts the server many times."""
        leaving = self._leaving or asyncio.Event()
        ticks = 0
        while not await self.on_tick(ticks):
            ticks += 1
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(leaving.wait(), TICK_SECONDS)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Refuse and cut at once; an event stream would keep a graceful end waiting for ever."""
        for server in self.servers:
            server.close()
        for listener in sockets or []:
            listener.close()
        # What was accepted this very moment takes some turns to be a connection, and one that is
        # cut takes another to close its socket.
        for _ in range(TURNS):
            self.abort()
            await asyncio.sleep(0)

    def leave(self) -> None:
        """End the main loop; on the server's loop only."""
        self.should_exit = True
        if self._leaving is not None:
            self._leaving.set()

    def abort(self, scope: Scope | None = None) -> None:
        """Cut the connection of one request, or all connections; on the server's loop only."""
        for connection in list(self.server_state.connections):
            client = getattr(connection, "client", None)
            is_meant = scope is None or client == tuple(scope.get("client") or ())
            if is_meant and connection.transport is not None:
                connection.transport.abort()


class DevServer:
    """A development server in a background thread: Dakera's protocol on a real socket.

    It is a stand-in for tests and demos, not Dakera. `port=0` takes a free port at the first start
    and keeps it: `stop` then `start` is a restart with the data kept. Data lives in memory, or in
    the SQLite file `data`. Every attribute may be used from any thread, running or not.

    Args:
        host: Address to bind; loopback by default, and without `api_key` it should stay that.
        port: Port to bind; 0 for a free one.
        data: File that keeps the data across processes; None for memory only. One that is no such
            file is refused with `ValueError`, and left as it was.
        api_key: Root key; None switches authentication off.
        version: Version to report and to behave like, such as "0.12.3" or "0.11.108".
        modes: How undocumented behaviours are settled.
        allowed_hosts: Further Host names that an open server answers to.
        keepalive: Seconds between comments on a quiet event stream.
        on_request: Called on the server's thread with each finished request, before the end
            of its answer has left.
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
        journal = FileJournal(data) if data is not None else None
        self.state = State(modes=modes, version=version, journal=journal)
        if api_key is not None:
            self.state.add_key(Key(api_key, name=ROOT_NAME))
        self._allowed_hosts = frozenset(name.lower() for name in (*allowed_hosts, host))
        self._keepalive = keepalive
        self._on_request = on_request
        self._control = threading.RLock()
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._reservation: socket.socket | None = None

    # Running

    def start(self) -> DevServer:
        """Listen; on return connections are accepted. Starting a running server does nothing."""
        with self._control:
            if self._thread is not None:
                return self
            listener = self._listen()
            self._server = _Server(self._config())
            self._thread = threading.Thread(
                target=self._run, args=(self._server, listener), name="devserver", daemon=True
            )
            self._thread.start()
            if not self._server.listening.wait(STARTUP_SECONDS):
                raise RuntimeError("the development server did not start")
            return self

    def _listen(self) -> socket.socket:
        if self._reservation is not None:
            self._reservation.close()
            self._reservation = None
        listener = _bound(self.host, self.port)
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
        """Refuse connections and cut the open ones; data and port stay for the next `start`."""
        with self._control:
            if self._thread is None or self._server is None:
                return
            server, loop = self._server, self._loop
            if loop is not None:
                # A closed loop has ended on its own.
                with contextlib.suppress(RuntimeError):
                    loop.call_soon_threadsafe(server.leave)
            self._thread.join()
            self._server = self._thread = self._loop = None
            # A bound socket that does not listen refuses connections and keeps the port ours.
            self._reservation = _bound(self.host, self.port)

    def close(self) -> None:
        """Stop for good and let the port and the data file go."""
        with self._control:
            self.stop()
            if self._reservation is not None:
                self._reservation.close()
                self._reservation = None
            self.state.close()

    def restart(self) -> None:
        """Stop and start: connections break, data stays."""
        with self._control:
            self.stop()
            self.start()

    def disconnect(self) -> None:
        """Cut every open connection, event streams included; new ones are accepted."""
        with self._control:
            if self._server is not None and self._loop is not None:
                self._loop.call_soon_threadsafe(self._server.abort)

    def refuse(self, seconds: float) -> None:
        """Refuse connections for that long; returns when the server accepts again."""
        with self._control:
            self.stop()
            time.sleep(seconds)
            self.start()

    def _break_soon(self, seconds: float | None) -> None:
        """Disconnect everybody, or refuse for that long, after the present answer has left."""

        def later() -> None:
            time.sleep(BREAK_DELAY_SECONDS)
            if seconds is None:
                self.disconnect()
            else:
                self.refuse(seconds)

        threading.Thread(target=later, name="devserver-break", daemon=True).start()

    def __enter__(self) -> DevServer:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def is_running(self) -> bool:
        """Whether connections are accepted."""
        return self._thread is not None

    @property
    def url(self) -> str:
        """The base URL for clients; known once the server has started."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    # Commanding and inspecting

    @property
    def faults(self) -> FaultPlan:
        """The fault plan."""
        return self.state.faults

    @property
    def clock(self) -> Clock:
        """The server's clock."""
        return self.state.clock

    @property
    def modes(self) -> Modes:
        """The modes in force; assign a changed value to switch while running."""
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
        """Return copies of an agent's memories as they are now, newest first."""
        with self.state.lock:
            housekeeping(self.state)
            known = self.state.agents.get(agent_id)
            if known is None:
                return []
            return [dict(record.doc) for record in known.newest(with_children=with_children)]

    def evict(self, agent_id: str, which: Callable[[dict[str, Any]], bool] | Iterable[str]) -> int:
        """Silently lose memories, by predicate over the memory object or by id; return how many."""
        return self.state.evict(agent_id, which)

    def snapshot(self) -> str:
        """Take a backup of all data and return its name."""
        return self.state.snapshot()

    def restore(self, name: str) -> None:
        """Roll all data back to a backup."""
        self.state.restore(name)

    def reset(self) -> None:
        """Forget all data, faults and logged requests; keys, modes, clock and port stay."""
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
        """Accept a further API key; the first key switches authentication on."""
        return self.state.add_key(Key(secret, scope, namespaces, name, expires_at))

    def remove_key(self, secret: str) -> None:
        """Refuse an API key from now on; removing the last switches authentication off."""
        self.state.remove_key(secret)


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named, asyncio switches Nagle's algorithm off on accepted connections; left
    # out, an answer in two writes waits 40 ms for the client's delayed acknowledgement.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":
            # Otherwise connections of the previous run would hold the port for a minute.
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except BaseException:
        bound.close()
        raise
    return bound
