"""The Dakera SDK client: making a client, checking a client, and access to its HTTP client.

No other module imports the SDK to make a client, or uses a private member of a client. Requests do
not use the SDK's methods; `docs/architecture.md` explains why.
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
    """Make an SDK client. Its retries are off: the replicator decides when to send again."""
    # Import the SDK here: it takes longer to import than the rest of this package, and offline use
    # does not need it.
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
        InvalidArgument: ``client`` is not an ``AsyncDakeraClient``.
    """
    # Do not import the SDK: while it is not loaded, no object can be its client.
    sdk = sys.modules.get("dakera")
    if sdk is None or not isinstance(client, sdk.AsyncDakeraClient):
        raise InvalidArgument(
            f"client={client!r} is not an AsyncDakeraClient; pass dakera.AsyncDakeraClient(url), "
            "or use from_url"
        )
    http_client_of(client)
    return check_url(client.base_url)


def http_client_of(client: AsyncDakeraClient) -> httpx.AsyncClient:
    """Return the HTTP client of an SDK client, with its connections, headers, timeouts and auth.

    Raises:
        InvalidArgument: this version of the SDK stores its HTTP client under another name.
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
