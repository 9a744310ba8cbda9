"""ASGI middleware that applies the fault plan to requests and writes the request log.

The middleware handles connections and whole responses only. Routes apply the faults that change
data (stale reads, partial batches); they find these faults in the ASGI scope.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from email.utils import formatdate

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cached_session.devserver.api_call import FAULTS_SCOPE_KEY
from cached_session.devserver.auth import check_host
from cached_session.devserver.faults import GARBLED, Fault
from cached_session.devserver.request_log import LoggedRequest, RequestLog
from cached_session.devserver.responses import ApiError, error_response, json_response
from cached_session.devserver.state import State

CONTROL_PREFIX = "/_dev/"
"""Path prefix of the control routes; faults do not apply to them."""

EVENT_STREAM = "/v1/events/stream"

DEFAULT_ERROR_CODES = {
    400: "INVALID_REQUEST",
    401: "INVALID_API_KEY",
    403: "INSUFFICIENT_SCOPE",
    408: "REQUEST_TIMEOUT",
    409: "CONFLICT",
    413: "PAYLOAD_TOO_LARGE",
    421: "HOST_NOT_ALLOWED",
    429: "RATE_LIMIT_EXCEEDED",
    500: "INTERNAL_ERROR",
    501: "FEATURE_DISABLED",
    503: "SERVICE_UNAVAILABLE",
    504: "QUERY_TIMEOUT",
}

AbortConnection = Callable[[Scope], None]
"""Function that closes the connection of a request without sending a response."""

LogResponse = Callable[[int | None, bool], None]
"""Function that logs a request.

Arguments: the status that is sent (None for a closed connection), and whether the route ran. The
function is called before the last byte of the response is sent, so that a client that has the
response finds the request in the log."""


class CapturedResponse:
    """The response of a route, held back so that a fault can replace, cut or discard it."""

    def __init__(self) -> None:
        self.start: Message | None = None
        self.body = b""

    async def send(self, message: Message) -> None:
        """Store one ASGI message of the response."""
        if message["type"] == "http.response.start":
            self.start = message
        elif message["type"] == "http.response.body":
            self.body += message.get("body", b"")

    @property
    def status(self) -> int:
        """Return the status of the response; 500 if the application sent no response."""
        return int(self.start["status"]) if self.start is not None else 500

    async def forward(self, send: Send, *, cut: bool = False) -> None:
        """Send the response; with `cut`, send its first half under the full `Content-Length`."""
        if self.start is None:
            return
        body = self.body[: len(self.body) // 2] if cut else self.body
        await send(self.start)
        await send({"type": "http.response.body", "body": body, "more_body": cut})


class FaultMiddleware:
    """Runs the routes under the fault plan; `FaultPlan` documents each fault."""

    def __init__(
        self,
        app: ASGIApp,
        state: State,
        log: RequestLog,
        *,
        abort: AbortConnection,
        allowed_hosts: frozenset[str] = frozenset(),
        on_request: Callable[[LoggedRequest], None] | None = None,
    ) -> None:
        self._app = app
        self._state = state
        self._log = log
        self._abort = abort
        self._allowed_hosts = allowed_hosts
        self._on_request = on_request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI request; log it unless it is for a control route."""
        if scope["type"] != "http":
            return
        if scope["path"].startswith(CONTROL_PREFIX):
            await self._app(scope, receive, send)
            return
        faults = self._state.faults.take(scope["method"], scope["path"])
        scope[FAULTS_SCOPE_KEY] = faults

        def log_response(status: int | None, committed: bool) -> None:
            entry = LoggedRequest(
                method=scope["method"],
                path=scope["path"],
                query=scope.get("query_string", b"").decode("latin-1"),
                status=status,
                committed=committed,
                faults=tuple(fault.kind for fault in faults),
            )
            self._log.add(entry)
            if self._on_request is not None:
                self._on_request(entry)

        await self._handle(scope, receive, send, faults, log_response)

    async def _handle(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        faults: list[Fault],
        log_response: LogResponse,
    ) -> None:
        """Apply the faults before and after the route, send the response, and log the request."""
        refusal = await self._before(scope, faults)
        cut = refusal is None and _has(faults, "drop", after=False)
        if cut or (refusal is not None and refusal.status_code == 0):
            log_response(None, False)
            self._abort(scope)
            return
        if refusal is not None:
            log_response(refusal.status_code, False)
            await refusal(scope, receive, send)
            return
        if scope["path"] == EVENT_STREAM:
            # The last byte of a stream is not known in advance, so log the request at its end.
            log_response(await self._stream(scope, receive, send), True)
            return
        try:
            body = await Request(scope, receive).body()
        except ClientDisconnect:
            log_response(None, False)
            return
        for _ in range(1 + sum(fault.kind == "duplicate" for fault in faults)):
            captured = CapturedResponse()
            await self._app(scope, _replay(body), captured.send)
        await self._after(scope, receive, send, faults, captured, log_response)

    async def _stream(self, scope: Scope, receive: Receive, send: Send) -> int | None:
        """Forward a streamed response without holding it back; return its status."""
        status: int | None = None

        async def forward(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = int(message["status"])
            await send(message)

        await self._app(scope, receive, forward)
        return status

    async def _before(self, scope: Scope, faults: list[Fault]) -> Response | None:
        """Apply the faults before the route; return the response if the route must not run.

        Return None if the route must run. A response with status 0 means that the connection is
        closed without a response.
        """
        if _has(faults, "down"):
            return Response(status_code=0)
        for fault in faults:
            if fault.kind == "latency" and not fault.after_commit:
                await asyncio.sleep(fault.seconds)
        for fault in faults:
            if fault.kind == "starting":
                return self._starting(scope, fault)
            if fault.kind == "status" and not fault.after_commit:
                return self._refusal(fault)
        if self._state.keys.is_empty:
            headers = dict(scope["headers"])
            try:
                check_host(headers.get(b"host", b"").decode("latin-1"), self._allowed_hosts)
            except ApiError as error:
                return error_response(error)
        return None

    async def _after(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        faults: list[Fault],
        captured: CapturedResponse,
        log_response: LogResponse,
    ) -> None:
        """Apply the faults to the response of a route that ran, send it, and log the request."""
        for fault in faults:
            if fault.kind == "latency" and fault.after_commit:
                await asyncio.sleep(fault.seconds)
        for fault in faults:
            if fault.kind == "drop" and fault.after_commit:
                log_response(None, True)
                self._abort(scope)
                return
            if fault.kind == "status" and fault.after_commit:
                log_response(fault.status, True)
                await self._refusal(fault)(scope, receive, send)
                return
            if fault.kind == "garbled":
                log_response(200, True)
                media_type, body = GARBLED[fault.body]
                await Response(body, media_type=media_type)(scope, receive, send)
                return
        log_response(captured.status, True)
        if _has(faults, "truncated"):
            await captured.forward(send, cut=True)
            # Give the event loop time to send the first half before the connection is closed.
            await asyncio.sleep(0.01)
            self._abort(scope)
            return
        await captured.forward(send)

    def _refusal(self, fault: Fault) -> Response:
        """Return the error response that a `status` fault describes."""
        headers = {}
        if fault.retry_after is not None:
            seconds = fault.retry_after
            headers["Retry-After"] = (
                formatdate(time.time() + seconds, usegmt=True)
                if fault.retry_after_date
                else f"{seconds:g}"
            )
        code = fault.code or DEFAULT_ERROR_CODES.get(fault.status, "INTERNAL_ERROR")
        message = fault.message or f"injected fault: status {fault.status}"
        error = ApiError(fault.status, code, message, headers=headers)
        return error_response(error, with_code=self._state.version.is_v012)

    def _starting(self, scope: Scope, fault: Fault) -> Response:
        """Return the response of a server that still loads its models."""
        version = self._state.version.text
        if scope["path"] == "/health/live":
            alive = {"alive": True, "version": version, "uptime_seconds": 0, "starting": True}
            return json_response(alive)
        wait = {"Retry-After": str(max(1, round(fault.remaining)))}
        if scope["path"] in ("/health", "/health/ready"):
            body = {
                "ready": False,
                "version": version,
                "starting": True,
                "reason": "loading models",
                "downloads": [],
            }
            return json_response(body, 503, wait)
        error = ApiError(503, "SERVICE_UNAVAILABLE", "the server is starting", headers=wait)
        return error_response(error)


def _has(faults: list[Fault], kind: str, *, after: bool | None = None) -> bool:
    return any(
        fault.kind == kind and (after is None or fault.after_commit == after) for fault in faults
    )


def _replay(body: bytes) -> Receive:
    """Return an ASGI receive function that delivers a body that was already read."""
    delivered = False

    async def receive() -> Message:
        nonlocal delivered
        if delivered:
            return {"type": "http.disconnect"}
        delivered = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive
