"""A development server for the part of Dakera's protocol that this package uses.

The server replaces Dakera in tests, demos and development. It follows the documented behaviour of
Dakera; each undocumented behaviour is a setting in `Modes`. The server shares no code with the
client, so that a mistake in one of them cannot hide a mistake in the other. In the package, only
the CLI and `cached_session.testing` import it.

    with DevServer() as server:
        server.faults.lose_response(count=1, route="POST /v1/memories/store/batch")
        ...                                    # connect a client to server.url
        assert server.requests.count("POST /v1/memories/store/batch") == 2
"""

from __future__ import annotations

try:
    from cached_session.devserver.auth import Key
    from cached_session.devserver.clock import Clock
    from cached_session.devserver.emulation import Modes
    from cached_session.devserver.faults import Fault, FaultPlan
    from cached_session.devserver.process import serve
    from cached_session.devserver.request_log import LoggedRequest, RequestLog
    from cached_session.devserver.server import DevServer
except ModuleNotFoundError as error:
    if error.name not in ("starlette", "typer", "uvicorn"):
        raise
    raise ModuleNotFoundError(
        f"{error.name} is not installed. Install the extra that contains it: "
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
