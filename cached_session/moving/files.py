"""Items in files: JSON lines, read and written byte for byte, and what a Dakera server exports."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cached_session.engine.importer import Row
from cached_session.errors import InvalidArgument
from cached_session.journal.sqlite.codec import codec_of

__all__ = ["jsonl_rows", "line_of", "lines", "memories", "row_of"]

BOM = b"\xef\xbb\xbf"


def lines(path: str | os.PathLike[str]) -> Iterator[bytes]:
    """A file's lines that are not blank, without what ends them.

    Raises:
        InvalidArgument: it cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            for number, line in enumerate(file):
                text = line.removeprefix(BOM).strip() if number == 0 else line.strip()
                if text:
                    yield text
    except OSError as error:
        raise InvalidArgument(f"{path} cannot be read: {error.strerror or error}") from error


def jsonl_rows(path: str | os.PathLike[str]) -> Iterator[Row]:
    """One item a line, kept as it stands: what is exported again has the same bytes."""
    return map(row_of, lines(path))


def row_of(line: bytes) -> Row:
    """A line as the journal stores it; None if it is no JSON that every reader understands."""
    try:
        text = line.decode()
        json.loads(text, parse_constant=_refuse)
        return text, codec_of(text)
    except (ValueError, RecursionError):
        return None


def line_of(payload: bytes) -> bytes:
    """A stored item as one line. A line break in a JSON text can only be space between its parts:
    inside a string it would be escaped."""
    return payload.replace(b"\r", b" ").replace(b"\n", b" ") + b"\n"


def memories(path: str | os.PathLike[str]) -> Iterator[dict[str, Any] | None]:
    """The memories of a Dakera export in JSON lines; None for a line that is none."""
    for line in lines(path):
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            found = None
        yield found if isinstance(found, dict) else None


def _refuse(constant: str) -> object:
    raise ValueError(f"{constant} is no JSON")
