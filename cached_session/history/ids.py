"""The hash that replaces a session id in names and digests, and the agent name made from it.

Golden tests freeze the hash: if it changed, a device would no longer find its stored data.
"""

from __future__ import annotations

import hashlib
import re

__all__ = ["SLUG_MOST", "agent_id", "session_key"]

KEY_HEX = 32
"""Length of the hash in hexadecimal digits: 128 bits, so that no two session ids get the same
hash."""


def session_key(session_id: str) -> str:
    """Return the hash that replaces a session id wherever the id itself is not a legal name."""
    return hashlib.sha256(session_id.encode("utf-8", "surrogatepass")).hexdigest()[:KEY_HEX]


SLUG_MOST = 120
"""Maximum number of characters of the session id in an agent name. With prefix and hash, the name
stays below the server's limit of 241 characters."""


_ILLEGAL = re.compile(r"[^A-Za-z0-9_.-]+")


def agent_id(session_id: str) -> str:
    """Return the readable and unique name of the Dakera agent that stores a session."""
    slug = _ILLEGAL.sub("-", session_id)[:SLUG_MOST].strip("-.")
    key = session_key(session_id)
    return f"cs-{slug}-{key}" if slug else f"cs-{key}"
