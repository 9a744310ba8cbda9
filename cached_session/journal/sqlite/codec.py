"""Encoding of items as JSON text and back, without loss; sessions and importers call it.

The fast library (orjson) encodes and decodes nearly all items. The standard library handles the
items that orjson would change or refuse: integers beyond 64 bits, lone surrogates, deep nesting.
The codec column of a row names the library that decodes the row. An item that JSON cannot represent
exactly is refused.
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
"""The codec of a text that orjson reads back unchanged."""
EXACT = 1
"""The codec of a text that needs the standard library: orjson would change or refuse it."""

log = logging.getLogger("cached_session.journal")


def encode_items(items: Sequence[Any]) -> list[tuple[str, int]]:
    """Return each item as (JSON text, codec).

    Raises:
        InvalidArgument: JSON cannot represent one of the items exactly. The whole batch is refused.
    """
    try:
        texts = [orjson.dumps(item) for item in items]
        # One check of all items together costs a fifth less than a check of each item.
        if decode_array(array_of(texts), len(texts)) == items:
            return [(text.decode(), FAST) for text in texts]
    except (orjson.JSONEncodeError, RecursionError):
        pass
    return [encode_item(item, position) for position, item in enumerate(items)]


def encode_item(item: Any, position: int = 0) -> tuple[str, int]:
    """Return one item as (JSON text, codec); see `encode_items`."""
    try:
        data = orjson.dumps(item)
        # orjson converts NaN to null and a UUID to text without an error. Decoding the text and
        # comparing detects such a change, and costs less than searching the item.
        if orjson.loads(data) == item:
            return data.decode(), FAST
    except (orjson.JSONEncodeError, orjson.JSONDecodeError, RecursionError):
        pass
    return _encode_exact(item, position)


def _encode_exact(item: Any, position: int) -> tuple[str, int]:
    try:
        text = json.dumps(item, allow_nan=False, separators=(",", ":"))
        is_exact = _is_equal(json.loads(text), item)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidArgument(_refusal(item, position, str(error))) from error
    except RecursionError as error:
        raise InvalidArgument(_refusal(item, position, "it is nested too deeply")) from error
    if not is_exact:
        raise InvalidArgument(
            _refusal(item, position, "it would be read back differently (keys must be strings)")
        )
    return text, codec_of(text)


def _refusal(item: Any, position: int, why: str) -> str:
    try:
        shown = repr(item)
    except Exception as error:  # noqa: BLE001 - an error in __repr__ must not replace this one
        shown = f"<{type(item).__name__} whose repr raised {type(error).__name__}>"
    if len(shown) > 120:
        shown = shown[:117] + "..."
    return (
        f"item {position} cannot be stored as JSON: {why}. No item of the batch was stored; "
        f"pass plain dicts, lists, strings, finite numbers, booleans and None. The item: {shown}"
    )


def _is_equal(decoded: Any, item: Any) -> bool:
    """Return whether a decoded item equals the original. A list equals a tuple."""
    if isinstance(item, dict):
        return (
            isinstance(decoded, dict)
            and len(decoded) == len(item)
            and all(
                isinstance(key, str) and key in decoded and _is_equal(decoded[key], value)
                for key, value in item.items()
            )
        )
    if isinstance(item, (list, tuple)):
        return (
            isinstance(decoded, list)
            and len(decoded) == len(item)
            and all(map(_is_equal, decoded, item))
        )
    return bool(decoded == item)


def codec_of(text: str) -> int:
    """Return the codec that reads a JSON text exactly, for example a text from another device.

    Raises:
        ValueError: the text is not JSON.
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
    """Return the items of (JSON text in UTF-8, codec) rows, in the same order, as new objects.

    A row that cannot be decoded is logged and left out. The other rows are not affected.
    """
    rows = list(rows)
    if not any(codec for _, codec in rows):
        try:
            items = decode_array(array_of([data for data, _ in rows]), len(rows))
        except TypeError:  # a damaged cell does not hold bytes
            items = None
        if items is not None:
            return items
    return [item for row in rows for item in _decode_one(*row)]


def array_of(texts: Iterable[bytes]) -> bytes:
    """Join JSON texts into one JSON array."""
    return b"[%b]" % b",".join(texts)


def decode_array(array: bytes, count: int) -> list[Any] | None:
    """Return the items of a JSON array that was made from ``count`` JSON texts; None if one of
    the texts is damaged."""
    try:
        items: list[Any] = orjson.loads(array)
    except ValueError:
        return None
    # A damaged text may contain a comma: the array is valid, but has more items than texts.
    return items if len(items) == count else None


def _decode_one(data: bytes, codec: int) -> list[Any]:
    try:
        return [orjson.loads(data) if codec == FAST else json.loads(data)]
    except (ValueError, TypeError, RecursionError) as error:
        log.warning("left out an item of the journal that cannot be decoded: %s", error)
        return []
