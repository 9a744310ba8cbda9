"""Forged memories under our names: malicious, faulty, or of a later version."""

from __future__ import annotations

from random import Random
from typing import Any

from cached_session.history.ids import session_key
from cached_session.history.ops import Dot, Kind, Operation
from cached_session.remote.ids import memory_id
from cached_session.remote.wire import memories_of

__all__ = ["forged_memory", "is_forged"]

HUGE = (1 << 31) - 1


def is_forged(writer: str) -> bool:
    """Return whether no device has this writer id."""
    return writer.startswith("stranger")


def forged_memory(random: Random, session: str) -> dict[str, Any]:
    """Return a memory with a valid tag of an operation that does not exist: an unreadable one, one
    of a later version, one of an incomplete operation, or one with a wrong digest."""
    key = session_key(session)
    dot = Dot("stranger" + random.choice("abcdefgh") * 16, random.randint(1, 1 << 20))
    op = Operation(dot, Kind.APPEND, 1 << 50, 0, ('"never said"',))
    (memory,) = memories_of(op, op.digest(key), session)
    said = memory["metadata"]
    what = random.choice(("unreadable", "later", "endless", "parts", "unsealed"))
    if what == "unreadable":
        said["cs_s"] = random.choice(("", "zz", 17, None, []))
    elif what == "later":
        said["cs_v"] = 3
        memory["id"] = memory_id(key, dot, 0, version=3)
    elif what == "endless":
        said["cs_n"] = HUGE
    elif what == "parts":
        said["cs_p"] = HUGE
    else:
        said["cs_x"] = '"something else"'
    return memory
