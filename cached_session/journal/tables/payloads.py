"""The body of an append's row: the payloads of the batch in one text.

A separator that no JSON text contains stands between two payloads, so that splitting the body gives
each payload exact to the byte. Spaces replace a removed payload. The body keeps its length, so
SQLite writes only the pages of that payload.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterable, Sequence

__all__ = [
    "SEPARATOR",
    "checked_payloads",
    "join_payloads",
    "remove_payload",
    "split_bodies",
    "visible_indexes",
    "visible_payloads",
]

SEPARATOR = "\x1e"
_BYTE = SEPARATOR.encode()

log = logging.getLogger("cached_session.journal")


def join_payloads(payloads: Sequence[str], hidden: Iterable[int] = ()) -> str:
    """Return the body of an append without the payloads at the indexes ``hidden``."""
    left = list(payloads)
    for index in hidden:
        left[index] = ""
    return SEPARATOR.join(left)


def visible_payloads(body: bytes | None, count: int, live: int) -> list[tuple[int, bytes]]:
    """Return the index and the payload of each visible item of an append, in order.

    If the body is damaged so that it does not have ``count`` payloads, the indexes are unknown. The
    function then logs the damage and returns an empty list.
    """
    if body is None or live <= 0:
        return []
    payloads = body.split(_BYTE)
    if len(payloads) != count:
        log.warning(
            "left out %d items of the journal: the payloads of their operation are damaged", live
        )
        return []
    if live == count:
        return list(enumerate(payloads))
    return [(index, text) for index, text in enumerate(payloads) if text and not text.isspace()]


def checked_payloads(
    seq: int, body: bytes | None, count: int, live: int
) -> list[tuple[int, bytes]]:
    """Return the index and the payload of each visible item of the append with this `seq`.

    Raises:
        sqlite3.DatabaseError: the body is damaged. Its missing items must not count as removed.
    """
    shown = visible_payloads(body, count, live)
    if len(shown) != live:
        raise sqlite3.DatabaseError(f"malformed journal: the payloads of operation number {seq}")
    return shown


def visible_indexes(body: bytes | None, count: int, live: int) -> list[int]:
    """Return the index of each visible item of an append. If all items are visible, the function
    does not need the body."""
    if live == count:
        return list(range(count))
    return [index for index, _ in visible_payloads(body, count, live)]


def remove_payload(body: bytes, index: int) -> bytes:
    """Return a body in which spaces replace one payload."""
    payloads = body.split(_BYTE)
    payloads[index] = b" " * len(payloads[index])
    return _BYTE.join(payloads)


def split_bodies(bodies: bytes) -> bytes:
    """Return joined bodies, without removed payloads, as the elements of a JSON array."""
    return bodies.replace(_BYTE, b",")
