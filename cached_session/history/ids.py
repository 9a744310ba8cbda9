"""The hash of a session id that stands for it in names and digests.

Golden tests freeze it: with another hash, a device would no longer find what it has stored.
"""

from __future__ import annotations

import hashlib
import re

__all__ = ["SLUG_MOST", "agent_id", "session_key"]

KEY_HEX = 32
"""Hexadecimal digits: 128 bits, so that two session ids do not collide by chance."""


def session_key(session_id: str) -> str:
    """Return the hash that replaces a session id wherever the id itself is not a legal name."""
    return hashlib.sha256(session_id.encode("utf-8", "surrogatepass")).hexdigest()[:KEY_HEX]


SLUG_MOST = 120
"""Characters of the session id that are shown: with prefix and hash well below the server's 241."""


_ILLEGAL = re.compile(r"[^A-Za-z0-9_.-]+")


def agent_id(session_id: str) -> str:
    """The Dakera agent that holds a session: legal, readable, one-to-one."""
    slug = _ILLEGAL.sub("-", session_id)[:SLUG_MOST].strip("-.")
    key = session_key(session_id)
    return f"cs-{slug}-{key}" if slug else f"cs-{key}"
