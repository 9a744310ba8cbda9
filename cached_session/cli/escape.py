"""Text from a history, a journal or a server, escaped so that it cannot control the terminal."""

from __future__ import annotations

import json
import re
from typing import Any

__all__ = ["safe", "safe_id", "safe_json"]

_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)
"""Control characters, marks that change the direction of a line, invisible characters, lone
surrogates."""
_KEPT = frozenset("\n\t\u200c\u200d")
"""Characters that `safe` does not escape: line breaks, tabs, and joiners of scripts and emoji."""


def safe(text: str) -> str:
    """Escape a text of several lines."""
    return _UNSAFE.sub(lambda found: found[0] if found[0] in _KEPT else _escaped(found[0]), text)


def safe_id(name: str) -> str:
    """Escape a name on one line, without ambiguity: a backslash is escaped as well."""
    return _UNSAFE.sub(lambda found: _escaped(found[0]), name.replace("\\", "\\\\"))


def safe_json(value: Any, indent: int | None = None) -> str:
    """Return a value as JSON. Unsafe characters are in strings, where JSON has escapes for them."""
    text = json.dumps(value, indent=indent, default=str, ensure_ascii=False)
    return _UNSAFE.sub(lambda found: "\n" if found[0] == "\n" else json.dumps(found[0])[1:-1], text)


def _escaped(sign: str) -> str:
    code = ord(sign)
    if code < 0x100:
        return {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(sign, f"\\x{code:02x}")
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
