"""Running the server as a process of its own, until a signal ends it; for the command line."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from cached_session.devserver.emulation import Modes
from cached_session.devserver.fault_middleware import LoggedRequest
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
    """Run a server until SIGINT or SIGTERM; for the command line, in the main thread.

    Prints `listening on URL` to standard output once connections are accepted. With `data`, every
    acknowledged change survives `kill -9`.

    Args:
        host: Address to bind.
        port: Port to bind; 0 for a free one, which the printed line names.
        data: File that keeps the data; None for memory only.
        api_key: Root key; None switches authentication off.
        version: Version to report and to behave like.
        modes: How undocumented behaviours are settled.
        faults: What goes wrong from the start: settings of `Fault` as plain values.
        latency: Seconds that every answer takes longer; a fault that can be removed like others.
        log: Print one line a request to standard error, or hand it to this function.
    """
    write = log if callable(log) else partial(_write, sys.stderr)

    def report(entry: LoggedRequest) -> None:
        status = entry.status if entry.status is not None else "dropped"
        faults = f" [{', '.join(entry.faults)}]" if entry.faults else ""
        write(f"{entry.method} {entry.path} {status}{faults}")

    server = DevServer(
        host,
        port,
        data=data,
        api_key=api_key,
        version=version,
        modes=modes,
        on_request=report if log else None,
    )
    try:
        server.faults.add_all(faults)
    except TypeError as error:
        raise ValueError(f"a fault makes no sense: {error}") from error
    if latency > 0:
        server.faults.latency(latency)
    done = threading.Event()
    before = {
        number: signal.signal(number, lambda *_: done.set())
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        with server:
            _write(sys.stdout, f"listening on {server.url}")
            done.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _write(stream: TextIO, line: str) -> None:
    stream.write(f"{line}\n")
    # Whoever started this process waits for the line on a pipe.
    stream.flush()
