"""Decoding of JSON bodies; long lists are decoded in slices, so that the event loop can run.

A thread would not help: the fast JSON library keeps the interpreter's lock for the whole of a call,
so the event loop would still wait.
"""

from __future__ import annotations

import json
from typing import Any

import anyio.lowlevel
import orjson

__all__ = ["decode", "decode_in_slices"]

SLICE_BYTES = 64 * 1024
"""Bytes of a list to decode at a time: a few hundred microseconds of work."""
BETWEEN_OBJECTS = b'},{"'
"""Bytes at which a list of objects can be cut. After a cut in a wrong place, in a string or inside
an object, neither side is JSON, so that a wrong cut is noticed."""


async def decode_in_slices(data: bytes) -> Any:
    """Decode a JSON body, and let other tasks run between the slices of a long list.

    Raises:
        ValueError, RecursionError: it is not JSON, or nested too deep.
    """
    if len(data) <= SLICE_BYTES or not data.startswith(b"[{"):
        return decode(data)
    found: list[Any] = []
    start = 1
    while start:
        cut = data.find(BETWEEN_OBJECTS, start + SLICE_BYTES)
        end = cut + 1 if cut >= 0 else len(data)
        try:
            found += orjson.loads(b"[%b%b" % (data[start:end], b"]" if cut >= 0 else b""))
        except orjson.JSONDecodeError:
            return decode(data)
        start = end + 1 if cut >= 0 else 0
        await anyio.lowlevel.checkpoint()
    return found


def decode(data: bytes) -> Any:
    """Decode a JSON body; None if it is empty.

    Raises:
        ValueError, RecursionError: it is not JSON, or nested too deep.
    """
    if not data:
        return None
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        # The standard library accepts lone surrogates. One in another program's memory must not
        # hide the rest of the list.
        return json.loads(data)
