"""The ASGI application: all routes behind the fault middleware, and JSON for every error."""

from __future__ import annotations

from collections.abc import Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from cached_session.devserver import routes_agent, routes_control, routes_memory, routes_system
from cached_session.devserver.fault_middleware import AbortConnection, FaultMiddleware
from cached_session.devserver.request_log import LoggedRequest, RequestLog
from cached_session.devserver.responses import ApiError, error_response
from cached_session.devserver.state import State

_HTTP_CODES = {404: "ROUTE_NOT_FOUND", 405: "METHOD_NOT_ALLOWED"}


def build_app(
    state: State,
    log: RequestLog,
    *,
    abort: AbortConnection,
    break_soon: routes_control.BreakConnections,
    allowed_hosts: frozenset[str] = frozenset(),
    keepalive: float = routes_system.KEEPALIVE_SECONDS,
    on_request: Callable[[LoggedRequest], None] | None = None,
) -> ASGIApp:
    """Return the ASGI application of a server with the given state."""

    async def http_error(request: Request, error: Exception) -> Response:
        if not isinstance(error, HTTPException):
            return await internal_error(request, error)
        code = _HTTP_CODES.get(error.status_code, "INVALID_REQUEST")
        refusal = ApiError(
            error.status_code,
            code,
            f"{error.detail}: {request.method} {request.url.path}",
            headers=error.headers,
        )
        return error_response(refusal, with_code=state.version.is_v012)

    async def internal_error(_request: Request, error: Exception) -> Response:
        refusal = ApiError(500, "INTERNAL_ERROR", f"{type(error).__name__}: {error}")
        return error_response(refusal, with_code=state.version.is_v012)

    app = Starlette(
        routes=[
            *routes_memory.routes(state),
            *routes_agent.routes(state),
            *routes_system.routes(state, keepalive),
            *routes_control.routes(state, log, break_soon),
        ],
        exception_handlers={HTTPException: http_error, Exception: internal_error},
    )
    # Dakera sends no redirects, and the SDK would not follow them.
    app.router.redirect_slashes = False
    return FaultMiddleware(
        app, state, log, abort=abort, allowed_hosts=allowed_hosts, on_request=on_request
    )
