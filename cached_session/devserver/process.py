"""`serve`: runs the server in the foreground of a process until a signal; used by the CLI."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from cached_session.devserver.emulation import Modes
from cached_session.devserver.request_log import LoggedRequest
from cached_session.devserver.server import DevServer


def serve(
    host: str = "127.0.0.1",
    port: int = 3000,
    *,
    data: str | Path | None = None,
    api_key: str | None = None,
    version: str = "0.12.3",
    modes: Modes | None = None,
    latency: float = 0.0,
    faults: Iterable[Mapping[str, Any]] = (),
    log: bool | Callable[[str], None] = False,
) -> None:
    """Run a server until SIGINT or SIGTERM. Call it in the main thread.

    Prints `listening on URL` to standard output when connections are accepted. With `data`, every
    acknowledged change survives `kill -9`.

    Args:
        host: Address to bind.
        port: Port to bind; 0 for a free port, which is in the printed line.
        data: File in which the data is stored; None for memory only.
        api_key: Root key; None switches authentication off.
        version: Version to report and to emulate.
        modes: Choices for undocumented behaviours; None for the defaults.
        latency: Seconds of delay of each request. The delay is a fault that can be removed.
        faults: Faults that are active from the start: JSON objects with settings of `Fault`.
        log: True to print a line per request to standard error, or a function that gets each line.

    Raises:
        ValueError: a fault or the data file is invalid; nothing was started.
        OSError: the address cannot be bound.
    """
    write_line = log if callable(log) else partial(_write, sys.stderr)
    server = DevServer(
        host,
        port,
        data=data,
        api_key=api_key,
        version=version,
        modes=modes,
        on_request=(lambda entry: write_line(_log_line(entry))) if log else None,
    )
    server.faults.add_all(faults)
    if latency > 0:
        server.faults.latency(latency)
    with _stop_signal() as stop, server:
        _write(sys.stdout, f"listening on {server.url}")
        stop.wait()


def _log_line(entry: LoggedRequest) -> str:
    status = entry.status if entry.status is not None else "dropped"
    faults = f" [{', '.join(entry.faults)}]" if entry.faults else ""
    return f"{entry.method} {entry.path} {status}{faults}"


@contextlib.contextmanager
def _stop_signal() -> Iterator[threading.Event]:
    """Yield an event that SIGINT and SIGTERM set; restore the former handlers at the end."""
    stop = threading.Event()
    handlers = {
        number: signal.signal(number, lambda *_: stop.set())
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield stop
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _write(stream: TextIO, line: str) -> None:
    stream.write(f"{line}\n")
    # The parent process may wait for the line on a pipe.
    stream.flush()
