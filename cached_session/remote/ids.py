"""Ids on the server: the namespace of an agent, and the ids of its memories.

Golden tests freeze these ids. A memory id is derived from the session and the operation, so that
sending an operation again stores no duplicate. It begins with the operation's wire version. The
memories of one operation never have two versions. `history.ids` derives the agent id.
"""

from __future__ import annotations

import re

from cached_session.history.ops import Dot

__all__ = [
    "READABLE_VERSIONS",
    "WIRE_VERSION",
    "claim_id",
    "dot_of",
    "memory_id",
    "namespace",
    "placeholder_id",
    "version_of",
]

WIRE_VERSION = 2
"""Version of the wire format that new operations have."""
READABLE_VERSIONS: tuple[int, ...] = (2, 1)
"""The versions that this code reads, newest first. A caller that does not know the version of an
operation looks for its memories under the ids of each of these versions."""
SHORT_KEY = 12
"""Number of hex digits of the session's hash in a memory id. They make the id unique across
sessions, because memory ids of a server may be global."""

_OURS = re.compile(r"cs(\d{1,4})-[0-9a-f]{12}-")
_OPERATION = re.compile(r"cs\d{1,4}-([0-9a-f]{12})-([^-]{1,64})-(\d{1,16})-(?:void|\d+(?:-\d+)?)")


def namespace(agent: str) -> str:
    """Return the namespace in which the server stores an agent's memories."""
    return f"_dakera_agent_{agent}"


def memory_id(key: str, dot: Dot, index: int, part: int = 0, version: int = WIRE_VERSION) -> str:
    """Return the id of one part of one payload of an operation, in the session with this key."""
    head = f"cs{version}-{key[:SHORT_KEY]}-{dot.writer}-{dot.counter}-{index}"
    return f"{head}-{part}" if part else head


def placeholder_id(key: str, dot: Dot, version: int = WIRE_VERSION) -> str:
    """Return the id of the placeholder of a parked operation.

    It differs from every id of the operation itself, which may still be sent later.
    """
    return f"cs{version}-{key[:SHORT_KEY]}-{dot.writer}-{dot.counter}-void"


def claim_id(key: str, dot: Dot, index: int, claimer: str) -> str:
    """Return the id of the claim note that one claimer stores for an item.

    `version_of` does not accept this form of id, so every reader of the history skips the note. The
    id is the same for all wire versions of the item, because devices of all versions look for it.
    """
    return f"csn1-{key[:SHORT_KEY]}-{dot.writer}-{dot.counter}-{index}-{claimer}"


def dot_of(memory: str, key: str) -> Dot | None:
    """Return the operation that a memory id names; None if it is not of the session with this key.

    The id may be that of a part of the operation, or of its placeholder.
    """
    found = _OPERATION.fullmatch(memory)
    if found is None or found[1] != key[:SHORT_KEY]:
        return None
    return Dot(found[2], int(found[3]))


def version_of(memory: object) -> int | None:
    """Return the wire version in a memory id; None if this package did not make the id."""
    found = _OURS.match(memory) if isinstance(memory, str) else None
    return int(found[1]) if found else None
