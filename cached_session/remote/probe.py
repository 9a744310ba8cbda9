"""A read-only inspection of a server: version, capabilities, scope of the key, clock."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from cached_session.remote.errors import RemoteError, Verdict
from cached_session.remote.http import Answer

__all__ = ["ServerFacts", "probe"]

Request = Callable[[str, str], Awaitable[Answer]]
"""Function that sends one request (method, path), once; see `DakeraHttp.request`."""


@dataclass(frozen=True)
class ServerFacts:
    """The server's own description of itself and of the key."""

    version: str | None
    """Version of the server; None if the server does not report its version."""
    capabilities: Mapping[str, Any] | None
    """Answer of the capabilities route; None if the server is older than this route."""
    key: Mapping[str, Any] | None
    """Scope and grants of the key (whoami); None if the server is older than this route."""
    date: float | None
    """Unix time by the server's clock, in whole seconds; None if its answer has no date."""
    seconds: float
    """Duration in seconds of the health request, whose answer contains the date."""


async def probe(request: Request) -> ServerFacts:
    """Request the server's health, its capabilities and the key's scope.

    Raises:
        RemoteError: the server does not answer, or refuses the key.
    """
    started = time.monotonic()
    health = await request("GET", "/health")
    seconds = time.monotonic() - started
    version = health.body.get("version") if isinstance(health.body, dict) else None
    return ServerFacts(
        version=version if isinstance(version, str) else None,
        capabilities=await _if_known(request, "/v1/capabilities"),
        key=await _if_known(request, "/v1/auth/whoami"),
        date=_unix_time(health.headers.get("date")),
        seconds=seconds,
    )


async def _if_known(request: Request, path: str) -> Mapping[str, Any] | None:
    """Return the answer of a route; None if the server is older than the route."""
    try:
        answer = await request("GET", path)
    except RemoteError as error:
        if error.verdict is Verdict.ABSENT or error.status == 404:
            return None
        raise
    return answer.body if isinstance(answer.body, dict) else None


def _unix_time(text: str | None) -> float | None:
    try:
        return parsedate_to_datetime(text or "").timestamp()
    except (TypeError, ValueError):
        return None
