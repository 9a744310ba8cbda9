"""Items to JSON text and back, exactly: what JSON cannot carry is refused, never bent.

The fast library writes and reads nearly everything. What it would change or refuse (integers past
64 bits, lone surrogates, deep nesting) takes the standard library's way, and its row says so.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from typing import Any

import orjson

from cached_session.errors import InvalidArgument

__all__ = [
    "EXACT",
    "FAST",
    "array_of",
    "codec_of",
    "decode_array",
    "decode_rows",
    "encode_item",
    "encode_items",
]

FAST = 0
"""The row was written by the fast library and reads back through it unchanged."""
EXACT = 1
"""The row needs the standard library: the fast one would lose something."""

log = logging.getLogger("cached_session.journal")


def encode_items(items: Sequence[Any]) -> list[tuple[str, int]]:
    """Each item as (JSON text, codec).

    Raises:
        InvalidArgument: if JSON cannot carry one of them exactly; the whole batch is refused.
    """
    try:
        texts = [orjson.dumps(item) for item in items]
        # As for each alone, and read back in one piece: that costs a fifth less.
        if decode_array(array_of(texts), len(texts)) == items:
            return [(text.decode(), FAST) for text in texts]
    except (orjson.JSONEncodeError, RecursionError):
        pass
    return [encode_item(item, position) for position, item in enumerate(items)]


def encode_item(item: Any, position: int = 0) -> tuple[str, int]:
    """One item as (JSON text, codec); see `encode_items`."""
    try:
        data = orjson.dumps(item)
        # The fast library turns NaN into null and a UUID into text without a word: reading back
        # is how that is noticed, and costs less than walking the item here.
        if orjson.loads(data) == item:
            return data.decode(), FAST
    except (orjson.JSONEncodeError, orjson.JSONDecodeError, RecursionError):
        pass
    return _encode_exact(item, position)


def _encode_exact(item: Any, position: int) -> tuple[str, int]:
    try:
        text = json.dumps(item, allow_nan=False, separators=(",", ":"))
        same = _same(json.loads(text), item)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidArgument(_refusal(item, position, str(error))) from error
    except RecursionError as error:
        raise InvalidArgument(_refusal(item, position, "it is nested too deeply")) from error
    if not same:
        raise InvalidArgument(
            _refusal(item, position, "it would not come back as it went in (keys must be strings)")
        )
    return text, codec_of(text)


def _refusal(item: Any, position: int, why: str) -> str:
    try:
        shown = repr(item)
    except Exception as error:  # noqa: BLE001 - a hostile __repr__ must not hide the refusal
        shown = f"<{type(item).__name__} whose repr raised {type(error).__name__}>"
    if len(shown) > 120:
        shown = shown[:117] + "..."
    return (
        f"item {position} cannot be carried by JSON: {why}. Nothing of the batch was stored; "
        f"pass plain dicts, lists, strings, finite numbers, booleans and None. The item: {shown}"
    )


def _same(decoded: Any, item: Any) -> bool:
    """Whether JSON brought back what it was given; a tuple may come back as a list."""
    if isinstance(item, dict):
        return (
            isinstance(decoded, dict)
            and len(decoded) == len(item)
            and all(
                isinstance(key, str) and key in decoded and _same(decoded[key], value)
                for key, value in item.items()
            )
        )
    if isinstance(item, (list, tuple)):
        return (
            isinstance(decoded, list)
            and len(decoded) == len(item)
            and all(map(_same, decoded, item))
        )
    return bool(decoded == item)


def codec_of(text: str) -> int:
    """Which library reads this text back exactly; a text from the wire is asked the same.

    Raises:
        ValueError: if the text is no JSON at all.
    """
    data = text.encode()
    try:
        if orjson.dumps(orjson.loads(data)) == data:
            return FAST
    except (orjson.JSONDecodeError, orjson.JSONEncodeError, RecursionError):
        pass
    json.loads(text)
    return EXACT


def decode_rows(rows: Iterable[tuple[bytes, int]]) -> list[Any]:
    """The items of (JSON text in UTF-8, codec) rows, in their order, as fresh objects.

    A row that cannot be decoded is left out and logged; its neighbours are not touched.
    """
    rows = list(rows)
    if not any(codec for _, codec in rows):
        try:
            items = decode_array(array_of([data for data, _ in rows]), len(rows))
        except TypeError:  # one of them is no bytes at all
            items = None
        if items is not None:
            return items
    return [item for row in rows for item in _decode_one(*row)]


def array_of(texts: Iterable[bytes]) -> bytes:
    """One JSON array of these texts."""
    return b"[%b]" % b",".join(texts)


def decode_array(array: bytes, count: int) -> list[Any] | None:
    """The items of an array of so many texts; None if one of them is damaged."""
    try:
        items: list[Any] = orjson.loads(array)
    except ValueError:
        return None
    # A damaged row could still fit between its neighbours' commas.
    return items if len(items) == count else None


def _decode_one(data: bytes, codec: int) -> list[Any]:
    try:
        return [orjson.loads(data) if codec == FAST else json.loads(data)]
    except (ValueError, TypeError, RecursionError) as error:
        log.warning("an item of the journal cannot be decoded and is left out: %s", error)
        return []
