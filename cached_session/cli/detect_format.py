"""The format of a file to import, detected by its first bytes and never by its name."""

from __future__ import annotations

import json
from pathlib import Path

from cached_session.errors import InvalidArgument

__all__ = ["detect_format"]


def detect_format(source: str) -> str:
    """Return `sqlite`, `dakera` (a server's export) or `jsonl`.

    Raises:
        InvalidArgument: the file cannot be read.
    """
    try:
        with Path(source).open("rb") as file:
            line = next((line for line in file if line.strip()), b"")
    except OSError as error:
        raise InvalidArgument(f"{source} cannot be read: {error.strerror or error}") from error
    if line.startswith(b"SQLite format 3\x00"):
        return "sqlite"
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return "jsonl"
    is_memory = isinstance(found, dict) and {"id", "content", "memory_type"} <= found.keys()
    return "dakera" if is_memory else "jsonl"
