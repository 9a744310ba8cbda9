"""A look at a server that changes nothing there: version, capabilities, scope of the key, clock."""

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
"""Sends (method, path) once; see `DakeraHttp.request`."""


@dataclass(frozen=True)
class ServerFacts:
    """The server's own description of itself and of the key."""

    version: str | None
    """None if the server does not name one."""
    capabilities: Mapping[str, Any] | None
    """None if the server is older than this route."""
    key: Mapping[str, Any] | None
    """Scope and grants of the key (whoami); None if the server is older than this route."""
    date: float | None
    """Unix seconds by the server's clock, to the second; None if the answer has no date."""
    seconds: float
    """Duration of the request whose answer had the date."""


async def probe(request: Request) -> ServerFacts:
    """Ask for health, capabilities and the key's scope.

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
    """Return the answer of a route; None if the server is older than it."""
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
