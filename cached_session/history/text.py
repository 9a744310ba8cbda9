"""What an item says, as a person reads it: for the server's recall, and for search."""

from __future__ import annotations

import json
import unicodedata
from typing import Any

import orjson

__all__ = ["ROLES", "folded", "readable"]

CONTENT_BYTES = 60_000
"""Readable text of one item; the server refuses content over 100,000 bytes."""

_ROLES = frozenset({"user", "assistant", "system", "developer"})
ROLES = _ROLES | {"item", "reasoning", "tool"}
"""Every role that `readable` gives."""


def readable(payload: str) -> tuple[str, str]:
    """(role, text) of an item as a person would read it. Any JSON gives something, never empty."""
    try:
        role, text = _said(_loaded(payload))
    except (ValueError, TypeError, RecursionError):
        # The fast library reads deeper than it writes, and calls that a TypeError.
        role, text = "item", ""
    # A lone surrogate has no UTF-8, and none of what is readable here needs to be exact.
    text = text.encode("utf-8", "replace").decode()
    text = text.replace("\x00", "\ufffd").strip() or payload
    encoded = text.encode("utf-8", "replace")
    if len(encoded) > CONTENT_BYTES:
        text = encoded[:CONTENT_BYTES].decode("utf-8", "ignore") + " (...)"
    return role, text


def folded(text: str) -> str:
    """A text as search compares it: whatever the case, the width or the way accents are spelt."""
    return unicodedata.normalize("NFKC", text).casefold()


def _loaded(payload: str) -> Any:
    try:
        return orjson.loads(payload)
    except orjson.JSONDecodeError:
        return json.loads(payload)


def _said(item: Any) -> tuple[str, str]:
    role, text = "item", ""
    if isinstance(item, dict):
        said = item.get("role")
        role = said if isinstance(said, str) and said in _ROLES else "item"
        kind = item.get("type")
        if kind == "function_call":
            role, text = "tool", f"{_text(item.get('name'))}({_text(item.get('arguments'))})"
        elif isinstance(kind, str) and kind.endswith("_output"):
            role, text = "tool", _text(item.get("output"))
        elif kind == "reasoning":
            role, text = "reasoning", _text(item.get("summary"))
        else:
            text = _text(item.get("content"))
    return role, text


def _text(value: Any) -> str:
    """The text within a content field: a string, or a list of parts with texts."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "\n".join(found for found in map(_text, value) if found)
    if isinstance(value, dict):
        for field in ("text", "refusal", "transcript", "content", "output"):
            if isinstance(value.get(field), (str, list)):
                return _text(value[field])
    return "" if value is None else orjson.dumps(value).decode()
