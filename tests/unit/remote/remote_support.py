"""A remote over the real SDK client, whose connections are replaced by a function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
from dakera import AsyncDakeraClient

from cached_session.options import SyncOptions
from cached_session.remote.dakera import DakeraRemote

CANARY = "canary-5e884898da28047151d0"
"""An API key that no text may show."""
URL = "http://127.0.0.1:3000"

Handler = Callable[[httpx.Request], httpx.Response]


def client_over(handler: Handler, key: str | None = CANARY, **arguments: Any) -> AsyncDakeraClient:
    """Return an SDK client whose requests are answered by ``handler``."""
    client = AsyncDakeraClient(URL, api_key=key, **arguments)
    client._client._transport = httpx.MockTransport(handler)
    return client


def remote_over(handler: Handler, key: str | None = CANARY) -> DakeraRemote:
    """Return a remote that owns such a client."""
    return DakeraRemote(client_over(handler, key), SyncOptions(), owned=True)


def raising(error: Exception) -> Handler:
    """Return a handler that raises instead of answering."""

    def handler(_: httpx.Request) -> httpx.Response:
        raise error

    return handler
