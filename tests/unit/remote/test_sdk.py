from __future__ import annotations

from typing import Any

import httpx
import pytest
from dakera import AsyncDakeraClient, DakeraClient

from cached_session.errors import InvalidArgument
from cached_session.options import SyncOptions
from cached_session.remote.dakera import DakeraRemote
from cached_session.remote.sdk import check_client, http_client_of, make_client
from tests.unit.remote.remote_support import CANARY, URL, client_over


async def test_our_own_client_does_not_retry_and_has_our_timeouts() -> None:
    """The SDK's defaults are three attempts and thirty seconds."""
    client = make_client(URL, CANARY, SyncOptions(request_timeout=7.0, connect_timeout=3.0))
    try:
        assert client._retry_config.max_retries == 1
        assert http_client_of(client).timeout == httpx.Timeout(7.0, connect=3.0)
        assert http_client_of(client).headers["authorization"] == f"Bearer {CANARY}"
    finally:
        await client.close()


async def test_a_caller_s_client_keeps_its_headers_auth_transport_and_timeouts() -> None:
    """Requests go over the caller's own HTTP client, and closing the remote leaves it open."""
    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json=[])

    client = client_over(handler, timeout=11.0, connect_timeout=5.0, headers={"X-Tenant": "acme"})
    client._client.auth = httpx.BasicAuth("user", "word")
    before = dict(vars(client))
    remote = DakeraRemote(client, SyncOptions(), owned=False)
    await remote.list_memories("cs-x", offset=0, limit=10)
    await remote.aclose()
    assert not client._client.is_closed
    assert vars(client) == before
    (request,) = seen
    assert request.headers["x-tenant"] == "acme"
    assert request.headers["authorization"].startswith("Basic ")
    assert request.headers["user-agent"].startswith("dakera-py/")
    assert request.extensions["timeout"] == {
        "connect": 5.0,
        "read": 11.0,
        "write": 11.0,
        "pool": 11.0,
    }
    await client.close()


async def test_our_own_client_is_closed_with_the_remote() -> None:
    """Nothing else holds it."""
    client = make_client(URL, None, SyncOptions())
    await DakeraRemote(client, SyncOptions(), owned=True).aclose()
    assert http_client_of(client).is_closed


@pytest.mark.parametrize("client", [None, 7, URL, DakeraClient(URL), httpx.AsyncClient()])
def test_another_object_is_not_a_client(client: Any) -> None:
    """The error names the value and what to pass, also for the SDK's synchronous client."""
    with pytest.raises(InvalidArgument, match="is not an AsyncDakeraClient"):
        check_client(client)


async def test_a_client_of_a_subclass_is_accepted() -> None:
    """A caller may extend the SDK's client."""

    class Extended(AsyncDakeraClient):
        pass

    client = Extended(f"{URL}/")
    assert check_client(client) == URL
    await client.close()


async def test_an_sdk_that_keeps_its_http_client_elsewhere_is_reported() -> None:
    """A later version may; the error says to install another one."""
    client = AsyncDakeraClient(URL)
    inner = client._client
    del client._client
    with pytest.raises(InvalidArgument, match="install a version of dakera"):
        check_client(client)
    await inner.aclose()
