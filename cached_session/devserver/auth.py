"""Who may do what: keys with scopes and grants, and which Host names an open server answers to."""

from __future__ import annotations

import ipaddress
from dataclasses import asdict, dataclass, field
from typing import Any

from cached_session.devserver.responses import ApiError

SCOPES = ("read", "write", "admin", "super_admin")

ROOT_NAME = "root"
"""The name of the key given at the start; it is never saved, so a restart can change it."""


@dataclass(frozen=True)
class Key:
    """An API key: its scope, and the namespaces it is good for (None for all)."""

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
        """Whether the key reaches the scope; each scope contains the ones before it."""
        return SCOPES.index(self.scope) >= SCOPES.index(scope)

    def grants(self, namespace: str) -> bool:
        """Whether the key may touch the namespace, by exact name or `prefix*`."""
        if self.namespaces is None:
            return True
        return any(
            namespace.startswith(grant[:-1]) if grant.endswith("*") else namespace == grant
            for grant in self.namespaces
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the key as plain values."""
        return asdict(self)


OPEN = Key(secret="", name="auth-disabled", key_id="auth-disabled")
"""Who everybody is while no key is configured."""


class Keyring:
    """The configured keys; none configured means that authentication is off."""

    def __init__(self) -> None:
        self._keys: dict[str, Key] = {}

    @property
    def is_empty(self) -> bool:
        """Whether authentication is off."""
        return not self._keys

    def add(self, key: Key) -> Key:
        """Accept a key from now on, replacing one with the same secret."""
        self._keys[key.secret] = key
        return key

    def remove(self, secret: str) -> None:
        """Refuse a key from now on."""
        self._keys.pop(secret, None)

    def all(self) -> list[Key]:
        """Return every key."""
        return list(self._keys.values())

    def identify(self, authorization: str | None, query_key: str | None, now: float) -> Key:
        """Return the caller's key; 401 without a valid one."""
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
    """Return when the key may do this, else raise the 403 that says why not."""
    if not key.allows(scope):
        raise ApiError(403, "INSUFFICIENT_SCOPE", f"the API key needs the {scope} scope")
    if namespace is not None and not key.grants(namespace):
        raise ApiError(403, "NAMESPACE_ACCESS_DENIED", f"the API key has no grant for {namespace}")


def check_host(host_header: str | None, allowed: frozenset[str]) -> None:
    """Refuse (421) a Host that is neither local nor private.

    An open server must not be reached by a web page through a name that its author controls.
    """
    host = (host_header or "").strip().lower()
    # An IPv6 address stands in brackets, because it has colons of its own.
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    if not name or name in allowed or name == "localhost" or name.endswith(".localhost"):
        return
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        address = None
    if address is None or not (address.is_private or address.is_loopback):
        raise ApiError(421, "HOST_NOT_ALLOWED", f"the host {name} is not allowed without API keys")
