"""Authentication and authorisation: API keys, scopes, grants, and the check of the Host header."""

from __future__ import annotations

import ipaddress
from dataclasses import asdict, dataclass, field
from typing import Any

from cached_session.devserver.responses import ApiError

SCOPES = ("read", "write", "admin", "super_admin")

ROOT_NAME = "root"
"""Name of the `api_key` of `DevServer`. This key is not stored, so a restart can change it."""


@dataclass(frozen=True)
class Key:
    """An API key: its scope, and the namespaces that it may access (None for all)."""

    secret: str
    scope: str = "super_admin"
    namespaces: list[str] | None = None
    name: str = ROOT_NAME
    expires_at: int | None = None
    key_id: str = field(default="")

    def __post_init__(self) -> None:
        if self.scope not in SCOPES:
            raise ValueError(f"scope must be one of {', '.join(SCOPES)}")
        if not self.key_id:
            object.__setattr__(self, "key_id", f"key_{self.name}")

    def allows(self, scope: str) -> bool:
        """Return whether the key has the scope; each scope in `SCOPES` includes those before it."""
        return SCOPES.index(self.scope) >= SCOPES.index(scope)

    def grants(self, namespace: str) -> bool:
        """Return whether a grant matches the namespace, by exact name or `prefix*`."""
        if self.namespaces is None:
            return True
        return any(
            namespace.startswith(grant[:-1]) if grant.endswith("*") else namespace == grant
            for grant in self.namespaces
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the key as a JSON object."""
        return asdict(self)


OPEN = Key(secret="", name="auth-disabled", key_id="auth-disabled")
"""The key of every caller while no key is configured."""


class Keyring:
    """The configured API keys. While there is no key, authentication is off."""

    def __init__(self) -> None:
        self._keys: dict[str, Key] = {}

    @property
    def is_empty(self) -> bool:
        """Return whether authentication is off."""
        return not self._keys

    def add(self, key: Key) -> Key:
        """Add a key, or replace the key that has the same secret."""
        self._keys[key.secret] = key
        return key

    def remove(self, secret: str) -> None:
        """Remove a key; an unknown secret is ignored."""
        self._keys.pop(secret, None)

    def all(self) -> list[Key]:
        """Return every key."""
        return list(self._keys.values())

    def identify(self, authorization: str | None, query_key: str | None, now: float) -> Key:
        """Return the caller's key, or raise a 401 if it is missing, unknown or expired."""
        if self.is_empty:
            return OPEN
        secret = query_key
        if authorization is not None:
            scheme, _, credentials = authorization.partition(" ")
            secret = credentials.strip() if scheme.lower() == "bearer" else None
        if not secret:
            raise ApiError(401, "AUTHENTICATION_REQUIRED", "an API key is required")
        key = self._keys.get(secret)
        if key is None:
            raise ApiError(401, "INVALID_API_KEY", "the API key is not valid")
        if key.expires_at is not None and now >= key.expires_at:
            raise ApiError(401, "API_KEY_EXPIRED", "the API key has expired")
        return key


def authorise(key: Key, scope: str, namespace: str | None = None) -> None:
    """Raise a 403 unless the key has the scope and, if given, a grant for the namespace."""
    if not key.allows(scope):
        raise ApiError(403, "INSUFFICIENT_SCOPE", f"the API key needs the {scope} scope")
    if namespace is not None and not key.grants(namespace):
        raise ApiError(403, "NAMESPACE_ACCESS_DENIED", f"the API key has no grant for {namespace}")


def check_host(host_header: str | None, allowed: frozenset[str]) -> None:
    """Raise a 421 for a Host header that is neither local, private nor allowed.

    Without this check, a web page could reach a server without keys through a DNS name that the
    author of the page controls.
    """
    host = (host_header or "").strip().lower()
    # An IPv6 address is in brackets, because it contains colons itself.
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    if not name or name in allowed or name == "localhost" or name.endswith(".localhost"):
        return
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        address = None
    if address is None or not (address.is_private or address.is_loopback):
        raise ApiError(421, "HOST_NOT_ALLOWED", f"the host {name} is not allowed without API keys")
