"""`FaultLab`: a server, and a network and a journal for each device, for tests under faults."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

from cached_session.cache import SessionCache
from cached_session.devserver import DevServer, FaultPlan, Modes
from cached_session.options import SyncOptions
from cached_session.session import CachedSession
from cached_session.testing.manual_clock import ManualClock
from cached_session.testing.network import Network
from cached_session.testing.random_faults import FAULTS, Havoc, havoc

__all__ = ["QUICK", "FaultLab"]

QUICK = SyncOptions(
    poll_interval=0.2,
    poll_interval_idle=1.0,
    watch_interval=0.05,
    backoff_base=0.05,
    backoff_max=0.5,
    request_timeout=2.0,
    connect_timeout=1.0,
)
"""Short intervals and timeouts, so that a test need not wait a minute for a retry."""


class FaultLab:
    """One server and any number of devices, each with a network that can be broken.

    Each device has a journal and a `network`. The same session id on two devices is the same
    session, with one history. Use the lab in a ``with`` statement (in a synchronous
    fixture) or in ``async with``, and close all sessions before its end. The end of the statement
    stops the server and the networks, and deletes the journals unless you passed a directory.

    Args:
        clock: True to use a `ManualClock` for the devices and the server; see the property `clock`.
        options: Options of the sessions.
        directory: Directory of the journals; None for a temporary directory.
        api_key: API key that the server requires; None for a server without authentication.
        modes: Choices of the server for behaviour that Dakera does not document.
    """

    def __init__(
        self,
        *,
        clock: bool = False,
        options: SyncOptions = QUICK,
        directory: Path | str | None = None,
        api_key: str | None = None,
        modes: Modes | None = None,
    ) -> None:
        self.server = DevServer(api_key=api_key, modes=modes)
        self.options = options
        self._api_key = api_key
        self._clock = ManualClock() if clock else None
        if self._clock is not None:
            self._clock.drive(self.server.clock)
        self._directory = None if directory is None else Path(directory)
        self._networks: dict[str, Network] = {}
        self._cleanup = contextlib.ExitStack()
        self._is_open = False

    @property
    def clock(self) -> ManualClock:
        """Return the clock of the devices and the server.

        Raises:
            RuntimeError: the lab uses real time.
        """
        if self._clock is None:
            raise RuntimeError("this lab uses real time; create it with FaultLab(clock=True)")
        return self._clock

    @property
    def faults(self) -> FaultPlan:
        """Return the fault plan of the server."""
        return self.server.faults

    def network(self, device: str = "laptop") -> Network:
        """Return the network between a device and the server.

        Raises:
            RuntimeError: the lab is not open.
        """
        if not self._is_open:
            raise RuntimeError("the lab is not open; use it as 'with FaultLab() as lab'")
        if device not in self._networks:
            self._networks[device] = self._cleanup.enter_context(Network(self.server.url))
        return self._networks[device]

    def journal(self, device: str = "laptop") -> Path:
        """Return the path of the journal of a device.

        Raises:
            RuntimeError: the lab is not open.
        """
        if not self._is_open or self._directory is None:
            raise RuntimeError("the lab is not open; use it as 'with FaultLab() as lab'")
        return self._directory / f"{device}.db"

    def session(self, session_id: str, device: str = "laptop", **more: Any) -> CachedSession:
        """Return a session of a device; the caller closes it.

        ``more`` are further keywords of `CachedSession.from_url`.

        Raises:
            RuntimeError: the lab is not open.
        """
        return CachedSession.from_url(session_id, **self._arguments(device), **more)

    def cache(self, device: str = "laptop") -> SessionCache:
        """Return a cache over the journal of a device; the caller closes it.

        Raises:
            RuntimeError: the lab is not open.
        """
        return SessionCache(**self._arguments(device))

    def _arguments(self, device: str) -> dict[str, Any]:
        arguments: dict[str, Any] = {
            "url": self.network(device).url,
            "api_key": self._api_key,
            "journal": self.journal(device),
            "options": self.options,
        }
        if self._clock is not None:
            arguments["runtime"] = self._clock.runtime()
        return arguments

    def restart(self) -> None:
        """Restart the server: its connections are closed, its data does not change.

        On return the server accepts connections again, at the same address.
        """
        self.server.restart()

    def havoc(
        self, *, seed: int = 0, pause: float = 0.2, faults: tuple[str, ...] = FAULTS
    ) -> contextlib.AbstractContextManager[Havoc]:
        """Break the networks of all devices, and the server, at random; see `havoc`.

        Create the sessions of the devices first: only existing networks are broken. ``pause`` is
        in seconds.

        Raises:
            ValueError: a kind of fault is unknown.
            RuntimeError: the lab is not open.
        """
        self.network()
        return havoc(
            self.server, list(self._networks.values()), seed=seed, pause=pause, faults=faults
        )

    def __enter__(self) -> FaultLab:
        if self._directory is None:
            temporary = tempfile.TemporaryDirectory(prefix="fault-lab-")
            self._directory = Path(self._cleanup.enter_context(temporary))
        self._cleanup.enter_context(self.server)
        self._is_open = True
        return self

    def __exit__(self, *exc: object) -> None:
        self._is_open = False
        self._cleanup.close()
        self._networks.clear()

    async def __aenter__(self) -> FaultLab:
        return self.__enter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.__exit__(kind, error, trace)
