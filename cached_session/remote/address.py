"""The address of a server: validation, a normal form, and the check whether other machines could
read the traffic."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from cached_session.errors import InvalidArgument

__all__ = ["check_url", "is_private"]


def check_url(url: object) -> str:
    """Return the base URL in a normal form, because the journal's acknowledgements refer to it.

    Raises:
        InvalidArgument: ``url`` is not an http or https URL of a host with at most a path.
    """
    text = url.strip() if isinstance(url, str) else ""
    # `urlsplit` silently drops some unprintable characters. No valid host or path contains any.
    if text and all(sign.isprintable() and not sign.isspace() for sign in text):
        try:
            parts = urlsplit(text)
            port = parts.port  # raises ValueError for an invalid port
        except ValueError:
            parts, port = urlsplit(""), None
        if parts.username is not None or parts.password is not None:
            raise InvalidArgument(
                "url has a user name or password in it, which would show up in logs and reports; "
                "pass the key as api_key"
            )
        host = parts.hostname
        plain = bool(host) and port != 0 and not parts.query and not parts.fragment
        if parts.scheme in ("http", "https") and host and plain:
            shown = f"[{host}]" if ":" in host else host
            usual = port is None or port == {"http": 80, "https": 443}[parts.scheme]
            return f"{parts.scheme}://{shown}{'' if usual else f':{port}'}{parts.path.rstrip('/')}"
    # The query may contain a key, so the message does not show the query.
    shown_url = url.partition("?")[0] if isinstance(url, str) else url
    raise InvalidArgument(
        f"url={shown_url!r} is not the address of a server; use the form http://host:port or "
        "https://host, without a query"
    )


def is_private(server: str) -> bool:
    """Return whether traffic to the server is private: https, or a server on this machine."""
    parts = urlsplit(server)
    host = parts.hostname or ""
    if parts.scheme == "https" or host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
