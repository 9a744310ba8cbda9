"""The hash that replaces a session's name in ids and digests, and the agent id made from it.

Golden tests freeze the hash: if it changed, a device would no longer find its stored data.
"""

from __future__ import annotations

import hashlib
import re

from cached_session.history.session_name import split_name

__all__ = ["SLUG_MOST", "agent_id", "session_key"]

KEY_HEX = 32
"""Length of the hash in hexadecimal digits: 128 bits, so that no two sessions get the same
hash."""


def session_key(name: str) -> str:
    """Return the hash that replaces a session's name wherever the name itself is not legal."""
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:KEY_HEX]


SLUG_MOST = 120
"""Maximum number of characters of the session id in an agent id."""
PREFIX_MOST = 60
"""Maximum number of characters of the key prefix in an agent id. With ``cs-``, session id and hash,
the agent id stays below the server's limit of 241 characters."""


_ILLEGAL = re.compile(r"[^A-Za-z0-9_.-]+")


def agent_id(name: str) -> str:
    """Return the readable and unique id of the Dakera agent that stores a session.

    It contains the legal characters of the key prefix, those of the session id, and the hash of the
    session's name.
    """
    prefix, session_id = split_name(name)
    parts = (_slug(prefix, PREFIX_MOST), _slug(session_id, SLUG_MOST), session_key(name))
    return "-".join(["cs", *filter(None, parts)])


def _slug(text: str, most: int) -> str:
    return _ILLEGAL.sub("-", text)[:most].strip("-.")
