"""The name that a session id goes by. Frozen by golden tests: changing it orphans users' data."""

from __future__ import annotations

import hashlib

__all__ = ["session_key"]

KEY_HEX = 32
"""128 bits of a session id's hash: no two sessions of the world meet by chance."""


def session_key(session_id: str) -> str:
    """The hash that stands for a session id wherever the id itself is no legal name."""
    return hashlib.sha256(session_id.encode("utf-8", "surrogatepass")).hexdigest()[:KEY_HEX]
