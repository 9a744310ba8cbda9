"""The Dakera SDK client: how it is made and checked, and how its HTTP client is taken from it.

No other module imports the SDK for its client or touches a private member of it. Requests do not go
through the SDK's methods; `docs/architecture.md` says why.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from cached_session.errors import InvalidArgument
from cached_session.options import SyncOptions
from cached_session.remote.address import check_url

if TYPE_CHECKING:
    import httpx
    from dakera import AsyncDakeraClient

__all__ = ["check_client", "http_client_of", "make_client"]


def make_client(url: str, api_key: str | None, options: SyncOptions) -> AsyncDakeraClient:
    """Make a client of our own. Its retries are off: the replicator decides when to send again."""
    # Imported here: the SDK takes longer to import than all the rest, and offline use needs none.
    from dakera import AsyncDakeraClient

    from cached_session.remote.dns import use_own_lookups

    client = AsyncDakeraClient(
        url,
        api_key=api_key,
        timeout=options.request_timeout,
        connect_timeout=options.connect_timeout,
        max_retries=1,
    )
    use_own_lookups(http_client_of(client))
    return client


def check_client(client: Any) -> str:
    """Return the base URL of a caller's client.

    Raises:
        InvalidArgument: it is not an ``AsyncDakeraClient``.
    """
    # Not imported: without the SDK in memory, no object can be a client of it.
    sdk = sys.modules.get("dakera")
    if sdk is None or not isinstance(client, sdk.AsyncDakeraClient):
        raise InvalidArgument(
            f"client={client!r} is not an AsyncDakeraClient; pass dakera.AsyncDakeraClient(url), "
            "or use from_url"
        )
    http_client_of(client)
    return check_url(client.base_url)


def http_client_of(client: AsyncDakeraClient) -> httpx.AsyncClient:
    """Return the HTTP client of an SDK client: connections, headers, timeouts and auth are its own.

    Raises:
        InvalidArgument: this version of the SDK keeps its HTTP client elsewhere.
    """
    import httpx

    found = getattr(client, "_client", None)
    if not isinstance(found, httpx.AsyncClient):
        import dakera

        raise InvalidArgument(
            f"dakera {getattr(dakera, '__version__', 'of unknown version')} has no HTTP client "
            "where cached_session looks for it; install a version of dakera that this version of "
            "cached_session supports"
        )
    return found
