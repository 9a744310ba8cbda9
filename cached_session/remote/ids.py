"""Where a session lives on the server: its agent id and the ids of its memories.

Frozen by golden tests. An agent id is a readable prefix, a slug of the session id where it is
legal, and 128 bits of its hash, which alone makes the mapping injective. A memory id is
deterministic: sending an operation again stores nothing twice.
"""

from __future__ import annotations

import re

from cached_session.history.ops import Dot

__all__ = ["WIRE_VERSION", "claim_id", "memory_id", "namespace", "placeholder_id", "version_of"]

WIRE_VERSION = 1
"""Stands in every memory id and in every memory's metadata."""
SHORT_KEY = 12
"""Hex digits of the session's hash in a memory id, should a server's ids be global after all."""

_OURS = re.compile(r"cs(\d{1,4})-[0-9a-f]{12}-")


def namespace(agent: str) -> str:
    """The namespace in which the server keeps an agent's memories."""
    return f"_dakera_agent_{agent}"


def memory_id(key: str, dot: Dot, index: int, part: int = 0) -> str:
    """The id of one part of one payload of an operation, in the session with this key."""
    head = f"cs{WIRE_VERSION}-{key[:SHORT_KEY]}-{dot.writer}-{dot.counter}-{index}"
    return f"{head}-{part}" if part else head


def placeholder_id(key: str, dot: Dot) -> str:
    """The id of the note that explains a hole: never that of the operation, which may come yet."""
    return f"cs{WIRE_VERSION}-{key[:SHORT_KEY]}-{dot.writer}-{dot.counter}-void"


def claim_id(key: str, dot: Dot, index: int, claimer: str) -> str:
    """The id of the note that one claimer leaves on an item. Not of the form that `version_of`
    knows: whoever reads the history, also with an earlier version, passes it over."""
    return f"csn1-{key[:SHORT_KEY]}-{dot.writer}-{dot.counter}-{index}-{claimer}"


def version_of(memory: object) -> int | None:
    """The wire version in a memory's id; None if the memory is not ours."""
    found = _OURS.match(memory) if isinstance(memory, str) else None
    return int(found[1]) if found else None
