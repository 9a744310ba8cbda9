"""The name of a session: one string made of its key prefix and its id.

Two applications may use the same session id. Each has its own key prefix, so that their sessions
have different names. Everything below the public classes identifies a session by its name. Golden
tests freeze the names.
"""

from __future__ import annotations

import re

__all__ = ["identity_fields", "quoted_name", "session_name", "split_name"]

MARKER = "\x1f"
"""First character of the name of a session with a prefix: the ASCII control character "unit
separator", which hardly any session id begins with."""

_HEAD = re.compile(f"((?:{MARKER}0::)*){MARKER}([1-9][0-9]{{0,8}}):")
"""Beginning of a name with a prefix: marker and length of the prefix. Before it, `_ESCAPE` may be
repeated."""
_ESCAPE = f"{MARKER}0::"
"""Beginning of the name of a session without a prefix whose id reads as a name with a prefix."""


def session_name(prefix: str, session_id: str) -> str:
    """Return the name of a session; without a prefix, it is the session id.

    The name is ``U+001F``, the length of the prefix, a colon, the prefix, a colon and the id. If an
    id without a prefix has this form, ``U+001F`` and ``0::`` precede it. Each pair of strings has
    its own name, and each string is the name of one pair.
    """
    if prefix:
        return f"{MARKER}{len(prefix)}:{prefix}:{session_id}"
    return f"{_ESCAPE}{session_id}" if _is_marked(session_id) else session_id


def split_name(name: str) -> tuple[str, str]:
    """Return the key prefix and the session id of a name: the inverse of `session_name`."""
    found = _match(name)
    if found is None:
        return "", name
    if found[1]:
        return "", name.removeprefix(_ESCAPE)
    end = found.end() + int(found[2])
    return name[found.end() : end], name[end + 1 :]


def quoted_name(name: str) -> str:
    """Return a name as text for errors and logs: the quoted id, and the prefix if there is one."""
    prefix, session_id = split_name(name)
    return f"{session_id!r} with key prefix {prefix!r}" if prefix else repr(session_id)


def identity_fields(name: str) -> dict[str, str]:
    """Return the fields that identify a session in log records and spans."""
    prefix, session_id = split_name(name)
    return {"session": session_id, "key_prefix": prefix}


def _is_marked(text: str) -> bool:
    """Return whether a text has the form of a name with a prefix, or of an escaped id."""
    return _match(text) is not None


def _match(text: str) -> re.Match[str] | None:
    if not text.startswith(MARKER):
        return None
    found = _HEAD.match(text)
    if found is None:
        return None
    end = found.end() + int(found[2])
    return found if text[end : end + 1] == ":" else None
