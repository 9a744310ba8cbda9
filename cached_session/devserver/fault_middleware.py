"""The gate in front of the routes: it carries out the fault plan and keeps the request log.

An ASGI application around another. It knows connections and whole answers, nothing of memories;
faults that only a route can carry out (stale reads, partial batches) travel in the scope.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.utils import formatdate
from fnmatch import fnmatchcase

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cached_session.devserver.api_call import FAULTS_SCOPE
from cached_session.devserver.auth import check_host
from cached_session.devserver.faults import GARBLED, Fault
from cached_session.devserver.responses import ApiError, error_response, json_response
from cached_session.devserver.state import State

CONTROL_PREFIX = "/_dev/"
"""Commands to the development server itself; no fault touches them."""

REQUESTS_KEPT = 100_000
"""Requests that the log remembers; a demo may run for days."""

EVENT_STREAM = "/v1/events/stream"

CODES = {
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

Abort = Callable[[Scope], None]
"""Cuts the connection that a request came on."""

Finish = Callable[[int | None, bool], None]
"""Logs a request: the status that is sent, None for a cut, and whether the route ran.

It comes before the last byte of the answer: a client that has its answer finds it in the log."""


@dataclass(frozen=True)
class LoggedRequest:
    """One request that arrived, and what the client got."""

    method: str
    path: str
    query: str
    status: int | None
    """The status sent; None when the connection was dropped instead."""
    committed: bool
    """Whether the route ran, whatever the client was told."""
    faults: tuple[str, ...] = ()


class RequestLog:
    """The latest requests since the start or the last `clear`, in order of completion."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: deque[LoggedRequest] = deque(maxlen=REQUESTS_KEPT)

    def add(self, entry: LoggedRequest) -> None:
        """Append a finished request."""
        with self._lock:
            self._entries.append(entry)

    def all(self) -> list[LoggedRequest]:
        """Return a copy of the log."""
        with self._lock:
            return list(self._entries)

    def clear(self) -> None:
        """Start counting anew."""
        with self._lock:
            self._entries.clear()

    def count(self, route: str = "*", *, status: int | None = None) -> int:
        """Count requests whose `METHOD /path` matches the pattern, and whose status is `status`."""
        return sum(
            fnmatchcase(f"{entry.method} {entry.path}", route)
            and (status is None or entry.status == status)
            for entry in self.all()
        )

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[LoggedRequest]:
        return iter(self.all())


class Captured:
    """An answer caught on its way out, so that it can be changed, cut or thrown away."""

    def __init__(self) -> None:
        self.start: Message | None = None
        self.body = b""

    async def send(self, message: Message) -> None:
        """Take one ASGI message of the answer."""
        if message["type"] == "http.response.start":
            self.start = message
        elif message["type"] == "http.response.body":
            self.body += message.get("body", b"")

    @property
    def status(self) -> int:
        """The status of the answer; 500 when the application gave none."""
        return int(self.start["status"]) if self.start is not None else 500

    async def forward(self, send: Send, *, cut: bool = False) -> None:
        """Send the answer on, with `cut` only its first half under the full length."""
        if self.start is None:
            return
        body = self.body[: len(self.body) // 2] if cut else self.body
        await send(self.start)
        await send({"type": "http.response.body", "body": body, "more_body": cut})


class Gate:
    """Runs the routes behind the fault plan; see `FaultPlan` for what each fault does."""

    def __init__(
        self,
        app: ASGIApp,
        state: State,
        log: RequestLog,
        *,
        abort: Abort,
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
        """Answer one request as an ASGI application does, and log it."""
        if scope["type"] != "http":
            return
        if scope["path"].startswith(CONTROL_PREFIX):
            await self._app(scope, receive, send)
            return
        faults = self._state.faults.take(scope["method"], scope["path"])
        scope[FAULTS_SCOPE] = faults

        def finish(status: int | None, committed: bool) -> None:
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

        await self._handle(scope, receive, send, faults, finish)

    async def _handle(
        self, scope: Scope, receive: Receive, send: Send, faults: list[Fault], finish: Finish
    ) -> None:
        """Answer one request, and log it."""
        refusal = await self._before(scope, faults)
        cut = refusal is None and _has(faults, "drop", after=False)
        if cut or (refusal is not None and refusal.status_code == 0):
            finish(None, False)
            self._abort(scope)
            return
        if refusal is not None:
            finish(refusal.status_code, False)
            await refusal(scope, receive, send)
            return
        if scope["path"] == EVENT_STREAM:
            # A stream has no last byte that it knows of: it is logged when it is over.
            finish(await self._stream(scope, receive, send), True)
            return
        try:
            body = await Request(scope, receive).body()
        except ClientDisconnect:
            finish(None, False)
            return
        for _ in range(1 + sum(fault.kind == "duplicate" for fault in faults)):
            captured = Captured()
            await self._app(scope, _replay(body), captured.send)
        await self._after(scope, receive, send, faults, captured, finish)

    async def _stream(self, scope: Scope, receive: Receive, send: Send) -> int | None:
        """Pass an answer through as it is made; return its status."""
        status: int | None = None

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = int(message["status"])
            await send(message)

        await self._app(scope, receive, noting)
        return status

    async def _before(self, scope: Scope, faults: list[Fault]) -> Response | None:
        """Carry out what happens before the route; return the answer that replaces it, if any."""
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
        captured: Captured,
        finish: Finish,
    ) -> None:
        """Carry out what happens to the answer of a route that ran, and log it."""
        for fault in faults:
            if fault.kind == "latency" and fault.after_commit:
                await asyncio.sleep(fault.seconds)
        for fault in faults:
            if fault.kind == "drop" and fault.after_commit:
                finish(None, True)
                self._abort(scope)
                return
            if fault.kind == "status" and fault.after_commit:
                finish(fault.status, True)
                await self._refusal(fault)(scope, receive, send)
                return
            if fault.kind == "garbled":
                finish(200, True)
                media_type, nonsense = GARBLED[fault.body]
                await Response(nonsense, media_type=media_type)(scope, receive, send)
                return
        finish(captured.status, True)
        if _has(faults, "truncated"):
            await captured.forward(send, cut=True)
            # One turn of the loop lets the first half leave before the connection does.
            await asyncio.sleep(0.01)
            self._abort(scope)
            return
        await captured.forward(send)

    def _refusal(self, fault: Fault) -> Response:
        headers = {}
        if fault.retry_after is not None:
            seconds = fault.retry_after
            headers["Retry-After"] = (
                formatdate(time.time() + seconds, usegmt=True)
                if fault.retry_after_date
                else f"{seconds:g}"
            )
        code = fault.code or CODES.get(fault.status, "INTERNAL_ERROR")
        message = fault.message or f"fault on command: {fault.status}"
        error = ApiError(fault.status, code, message, headers=headers)
        return error_response(error, with_code=self._state.version.is_v012)

    def _starting(self, scope: Scope, fault: Fault) -> Response:
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
    """Return a receive channel that delivers a body once more."""
    delivered = False

    async def receive() -> Message:
        nonlocal delivered
        if delivered:
            return {"type": "http.disconnect"}
        delivered = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive
