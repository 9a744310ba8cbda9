"""A server, a line to it for each device, a journal for each device: what a fault test needs."""

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
from cached_session.testing.random_faults import FAULTS, Havoc, havoc
from cached_session.testing.network import Network

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
"""Everything as in production, only sooner: a test should not wait a minute for a retry."""


class FaultLab:
    """One server and any number of devices that reach it over lines that can be broken.

    A device has a journal and a `network` of its own; the same session id on two devices is one
    history. Use it as ``with`` (in a plain fixture) or as ``async with``. At its end the server
    and the lines are gone, and the journals unless you named a directory; close sessions before.

    Args:
        clock: True for a `ManualClock` that the devices and the server go by; read it as `clock`.
        options: of the sessions.
        directory: for the journals; None for a temporary one.
        api_key: what the server asks for; None for an open one.
        modes: how the server settles what Dakera does not document.
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
        self._after = contextlib.ExitStack()
        self._is_open = False

    @property
    def clock(self) -> ManualClock:
        """The clock that devices and server go by.

        Raises:
            RuntimeError: the lab was made without one.
        """
        if self._clock is None:
            raise RuntimeError("this lab runs on real time; make it with FaultLab(clock=True)")
        return self._clock

    @property
    def faults(self) -> FaultPlan:
        """What the server does wrong, request by request."""
        return self.server.faults

    def network(self, device: str = "laptop") -> Network:
        """The line between a device and the server.

        Raises:
            RuntimeError: the lab is not open.
        """
        if not self._is_open:
            raise RuntimeError("the lab is not open; use 'with FaultLab() as lab'")
        if device not in self._networks:
            self._networks[device] = self._after.enter_context(Network(self.server.url))
        return self._networks[device]

    def journal(self, device: str = "laptop") -> Path:
        """The file that a device keeps its sessions in.

        Raises:
            RuntimeError: the lab is not open.
        """
        if not self._is_open or self._directory is None:
            raise RuntimeError("the lab is not open; use 'with FaultLab() as lab'")
        return self._directory / f"{device}.db"

    def session(self, session_id: str, device: str = "laptop", **more: Any) -> CachedSession:
        """A session of a device, which the caller closes; ``more`` are keywords of
        `CachedSession.from_url`.

        Raises:
            RuntimeError: the lab is not open.
        """
        return CachedSession.from_url(session_id, **self._arguments(device), **more)

    def cache(self, device: str = "laptop") -> SessionCache:
        """All sessions of a device, in a cache that the caller closes.

        Raises:
            RuntimeError: the lab is not open.
        """
        return SessionCache(**self._arguments(device))

    def _arguments(self, device: str) -> dict[str, Any]:
        given: dict[str, Any] = {
            "url": self.network(device).url,
            "api_key": self._api_key,
            "journal": self.journal(device),
            "options": self.options,
        }
        if self._clock is not None:
            given["runtime"] = self._clock.runtime()
        return given

    def restart(self) -> None:
        """Restart the server: connections break, data stays. On return it listens again, at the
        same address."""
        self.server.restart()

    def havoc(
        self, *, seed: int = 0, pause: float = 0.2, faults: tuple[str, ...] = FAULTS
    ) -> contextlib.AbstractContextManager[Havoc]:
        """Break the lines of the devices met so far, and the server, at random; see `havoc`. Make
        the devices' sessions before. ``pause`` is in seconds.

        Raises:
            ValueError: a fault is not known.
            RuntimeError: the lab is not open.
        """
        self.network()
        return havoc(
            self.server, list(self._networks.values()), seed=seed, pause=pause, faults=faults
        )

    # -- opening and closing ---------------------------------------------------------------------

    def __enter__(self) -> FaultLab:
        if self._directory is None:
            kept = tempfile.TemporaryDirectory(prefix="fault-lab-")
            self._directory = Path(self._after.enter_context(kept))
        self._after.enter_context(self.server)
        self._is_open = True
        return self

    def __exit__(self, *exc: object) -> None:
        self._is_open = False
        self._after.close()
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
