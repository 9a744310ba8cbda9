"""A development server that speaks the part of Dakera's protocol this package uses.

It is a stand-in for tests, demos and developers without the real server, and it is not Dakera: what
is documented it follows, what is unknown is a choice in `Modes`. It shares no code with the client
side, so a mistake in one cannot hide a mistake in the other, and nothing imports it but the CLI.

    with DevServer() as server:
        server.faults.lose_response(count=1, route="POST /v1/memories/store/batch")
        ...                                    # point a client at server.url
        assert server.requests.count("POST /v1/memories/store/batch") == 2
"""

from __future__ import annotations

try:
    from cached_session.devserver.auth import Key
    from cached_session.devserver.clock import Clock
    from cached_session.devserver.emulation import Modes
    from cached_session.devserver.fault_middleware import LoggedRequest, RequestLog
    from cached_session.devserver.faults import Fault, FaultPlan
    from cached_session.devserver.process import serve
    from cached_session.devserver.server import DevServer
except ModuleNotFoundError as error:
    if error.name not in ("starlette", "typer", "uvicorn"):
        raise
    raise ModuleNotFoundError(
        f"{error.name} is not installed. It comes with an extra of the package: "
        "pip install 'cached-session[devserver]'",
        name=error.name,
    ) from error

__all__ = [
    "Clock",
    "DevServer",
    "Fault",
    "FaultPlan",
    "Key",
    "LoggedRequest",
    "Modes",
    "RequestLog",
    "serve",
]
