"""JSON lines: items in a file, unchanged byte for byte, and memories in a Dakera export."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cached_session.engine.importer import Row
from cached_session.errors import InvalidArgument
from cached_session.journal.sqlite.codec import codec_of

__all__ = ["encode_line", "parse_row", "read_lines", "read_memories", "read_rows"]

BOM = b"\xef\xbb\xbf"


def read_lines(path: str | os.PathLike[str]) -> Iterator[bytes]:
    """Yield the lines of a file that are not blank, without line breaks.

    Raises:
        InvalidArgument: the file cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            for number, line in enumerate(file):
                text = line.removeprefix(BOM).strip() if number == 0 else line.strip()
                if text:
                    yield text
    except OSError as error:
        raise InvalidArgument(f"{path} cannot be read: {error.strerror or error}") from error


def read_rows(path: str | os.PathLike[str]) -> Iterator[Row]:
    """Yield one unchanged item for each line, so that an export writes identical bytes."""
    return map(parse_row, read_lines(path))


def parse_row(line: bytes) -> Row:
    """Return a line in the form that the journal stores; None if it is not standard JSON."""
    try:
        text = line.decode()
        json.loads(text, parse_constant=_refuse)
        return text, codec_of(text)
    except (ValueError, RecursionError):
        return None


def encode_line(payload: bytes) -> bytes:
    """Return a stored item as one line.

    Unescaped line breaks in a JSON text are white space between tokens, because JSON strings escape
    their line breaks. So these line breaks can be replaced by spaces.
    """
    return payload.replace(b"\r", b" ").replace(b"\n", b" ") + b"\n"


def read_memories(path: str | os.PathLike[str]) -> Iterator[dict[str, Any] | None]:
    """Yield the memories of a Dakera export; None for a line that is not a JSON object.

    Raises:
        InvalidArgument: the file cannot be read.
    """
    for line in read_lines(path):
        try:
            memory = json.loads(line)
        except (ValueError, RecursionError):
            memory = None
        yield memory if isinstance(memory, dict) else None


def _refuse(constant: str) -> object:
    raise ValueError(f"{constant} is not standard JSON")
