"""A look at a server that changes nothing there: who it is, what it can, what the key may."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from cached_session.remote.errors import RemoteError, Verdict

__all__ = ["ServerFacts", "probe"]

Exchange = Callable[[str, str], Awaitable[tuple[Any, Mapping[str, str]]]]


@dataclass(frozen=True)
class ServerFacts:
    """What a server says of itself."""

    version: str | None
    capabilities: Mapping[str, Any] | None
    """None: it is older than the route."""
    key: Mapping[str, Any] | None
    """What the key may do (whoami); None: the server is older than the route."""
    date: float | None
    """Unix seconds by the server's clock, to the second; None if it does not say."""
    seconds: float
    """How long the answer that bore the date took."""


async def probe(exchange: Exchange) -> ServerFacts:
    """Ask for health, capabilities and the key's scope.

    Raises:
        RemoteError: nobody answers, or the key is refused.
    """
    started = time.monotonic()
    health, headers = await exchange("GET", "/health")
    seconds = time.monotonic() - started
    version = health.get("version") if isinstance(health, dict) else None
    capabilities = await _if_known(exchange, "/v1/capabilities")
    return ServerFacts(
        version=version if isinstance(version, str) else None,
        capabilities=capabilities,
        key=await _if_known(exchange, "/v1/auth/whoami"),
        date=_date(headers.get("date")),
        seconds=seconds,
    )


async def _if_known(exchange: Exchange, path: str) -> Mapping[str, Any] | None:
    try:
        answer, _ = await exchange("GET", path)
    except RemoteError as error:
        if error.verdict is Verdict.ABSENT or error.status == 404:
            return None
        raise
    return answer if isinstance(answer, dict) else None


def _date(text: str | None) -> float | None:
    try:
        return parsedate_to_datetime(text or "").timestamp()
    except (TypeError, ValueError):
        return None
