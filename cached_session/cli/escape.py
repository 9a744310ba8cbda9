"""Text of others on a terminal: nothing in it moves the cursor, colours, reverses or hides."""

from __future__ import annotations

import json
import re
from typing import Any

__all__ = ["safe", "safe_id", "safe_json"]

_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)
"""Controls, marks that change a line's direction, signs that nobody sees, lone surrogates."""
_KEPT = frozenset("\n\t\u200c\u200d")
"""In a text for people: line breaks, and the joiners that scripts and emoji are written with."""


def safe(text: str) -> str:
    """A text of several lines, as it can be shown."""
    return _UNSAFE.sub(lambda found: found[0] if found[0] in _KEPT else _escaped(found[0]), text)


def safe_id(name: str) -> str:
    """A name on one line, unambiguous: what is escaped looks like nothing else."""
    return _UNSAFE.sub(lambda found: _escaped(found[0]), name.replace("\\", "\\\\"))


def safe_json(value: Any, indent: int | None = None) -> str:
    """JSON text of the same value: what is unsafe stands inside strings, where JSON has escapes."""
    text = json.dumps(value, indent=indent, default=str, ensure_ascii=False)
    return _UNSAFE.sub(lambda found: "\n" if found[0] == "\n" else json.dumps(found[0])[1:-1], text)


def _escaped(sign: str) -> str:
    code = ord(sign)
    if code < 0x100:
        return {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(sign, f"\\x{code:02x}")
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
