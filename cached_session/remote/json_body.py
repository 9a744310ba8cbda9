"""Decoding of JSON bodies; long lists are decoded in slices, so that the event loop can run.

Decoding in a thread would not help: orjson holds the interpreter lock during a call, so the event
loop would still wait.
"""

from __future__ import annotations

import json
from typing import Any

import anyio.lowlevel
import orjson

__all__ = ["decode", "decode_in_slices"]

SLICE_BYTES = 64 * 1024
"""Approximate size of a slice in bytes. Decoding a slice takes a few hundred microseconds."""
BETWEEN_OBJECTS = b'},{"'
"""Bytes at which a list of objects is cut. If they occur inside a string or inside an object,
neither side of the cut is valid JSON, so a wrong cut is detected."""


async def decode_in_slices(data: bytes) -> Any:
    """Decode a JSON body, and let other tasks run between the slices of a long list.

    Raises:
        ValueError, RecursionError: the body is not JSON, or is nested too deep.
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
    """Decode a JSON body; return None if it is empty.

    Raises:
        ValueError, RecursionError: the body is not JSON, or is nested too deep.
    """
    if not data:
        return None
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        # The standard library accepts lone surrogates; orjson does not. A lone surrogate in another
        # program's memory must not make the rest of the list unreadable.
        return json.loads(data)
