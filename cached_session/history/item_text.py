"""The readable text of an item: for search, and for the server's index."""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any

import orjson

__all__ = ["ROLES", "normalize_text", "role_and_text"]

CONTENT_BYTES = 60_000
"""Number of UTF-8 bytes after which the readable text of an item is cut. The server refuses content
of more than 100,000 bytes."""

_ROLES = frozenset({"user", "assistant", "system", "developer"})
ROLES = _ROLES | {"item", "reasoning", "tool"}
"""All roles that `role_and_text` returns."""


_MEDIA = {
    "audio": "audio",
    "audio_url": "audio",
    "computer_screenshot": "image",
    "document": "file",
    "file": "file",
    "file_url": "file",
    "image": "image",
    "image_file": "image",
    "image_generation_call": "image",
    "image_url": "image",
    "input_audio": "audio",
    "input_file": "file",
    "input_image": "image",
    "input_video": "video",
    "output_audio": "audio",
    "output_image": "image",
    "video": "video",
    "video_url": "video",
}
"""The types of parts that are not text, and the names that the readable text has for them."""
FILE_NAME_CHARACTERS = 200
_DATA_URL = re.compile(r"data:[\w.+-]+/[\w.+-]+(?:;[\w.=+-]+)*;base64,[A-Za-z0-9+/_=-]*")
_CHARACTER = "[A-Za-z0-9+/_-]"
_BASE64 = re.compile(
    rf"(?<!{_CHARACTER})(?:"
    + "".join(rf"(?={_CHARACTER}{{0,255}}{kind})" for kind in ("[0-9]", "[A-Z]", "[a-z]"))
    + rf"{_CHARACTER}{{256,}}"
    rf"|(?:{_CHARACTER}{{60,80}}\r?\n){{3,}}{_CHARACTER}*)={{0,2}}"
)
"""Base64 in one line, or in lines as in mail and in keys. Words and addresses are shorter. A line
of hex digits, or of one letter, lacks one of the kinds of characters."""
DATA = "[data]"
"""Replaces base64 in the readable text: it helps neither people nor a search."""


def role_and_text(payload: str) -> tuple[str, str]:
    """Return (role, text) of an item. The text of an item without readable text is its JSON.

    The text contains no base64. Images, files and the like have a short name, such as ``[image]``
    or ``[file contract.pdf]``.
    """
    try:
        role, text = _extract(_load(payload))
    except (ValueError, TypeError, RecursionError):
        # orjson parses deeper nesting than it can serialise. Serialising then raises TypeError.
        role, text = "item", ""
    # A lone surrogate has no UTF-8 form. Readable text need not be exact, so replace it.
    text = text.encode("utf-8", "replace").decode()
    text = text.replace("\x00", "\ufffd").strip() or payload
    text = _BASE64.sub(DATA, _DATA_URL.sub(DATA, text))
    encoded = text.encode("utf-8", "replace")
    if len(encoded) > CONTENT_BYTES:
        text = encoded[:CONTENT_BYTES].decode("utf-8", "ignore") + " (...)"
    return role, text


def normalize_text(text: str) -> str:
    """Normalise a text so that case, width and the form of accents do not matter in a search."""
    return unicodedata.normalize("NFKC", text).casefold()


def _load(payload: str) -> Any:
    try:
        return orjson.loads(payload)
    except orjson.JSONDecodeError:
        return json.loads(payload)


def _extract(item: Any) -> tuple[str, str]:
    role, text = "item", ""
    if isinstance(item, dict):
        given = item.get("role")
        role = given if isinstance(given, str) and given in _ROLES else "item"
        kind = item.get("type")
        if kind == "function_call":
            role, text = "tool", f"{_text(item.get('name'))}({_text(item.get('arguments'))})"
        elif isinstance(kind, str) and kind.endswith("_output"):
            role, text = "tool", _text(item.get("output"))
        elif kind == "reasoning":
            role, text = "reasoning", _text(item.get("summary"))
        else:
            text = _text(item.get("content")) or _media(item)
    return role, text


def _text(value: Any) -> str:
    """Return the text of a content field: a string, an object with a text, or a list of either."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "\n".join(found for found in map(_text, value) if found)
    if isinstance(value, dict):
        for field in ("text", "refusal", "transcript", "content", "output"):
            if isinstance(value.get(field), (str, list)):
                return _text(value[field])
        if name := _media(value):
            return name
    return "" if value is None else orjson.dumps(value).decode()


def _media(value: dict[str, Any]) -> str:
    """Return the short name of an image, a file or the like; an empty text for anything else."""
    kind = value.get("type")
    name = _MEDIA.get(kind) if isinstance(kind, str) else None
    if name is None:
        return ""
    inner = value.get("file")
    places = [value, inner] if isinstance(inner, dict) else [value]
    for place in places:
        for field in ("filename", "name", "title"):
            given = place.get(field)
            if name == "file" and isinstance(given, str) and given:
                return f"[{name} {given[:FILE_NAME_CHARACTERS]}]"
    return f"[{name}]"
