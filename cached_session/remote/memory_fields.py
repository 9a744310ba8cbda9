"""Checked access to the metadata fields of a memory: each field is read with its type and range."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cached_session.history.clock import MAX_STAMP
from cached_session.history.ops import is_id

__all__ = ["MetadataFields", "Unreadable"]

_WRITER = re.compile(r"[a-z2-7]{8,64}")
_STAMP = re.compile(r"[0-9a-f]{16}")
_DECIMAL = re.compile(r"-?[0-9]{1,19}")


class Unreadable(Exception):
    """A memory with an id of this package is invalid, or has a newer wire version."""


@dataclass(slots=True)
class MetadataFields:
    """The metadata of one memory. Each method raises `Unreadable` if the field is not valid.

    Treat it as immutable. As with `history.parts.Part`, one is created for each listed memory.
    """

    metadata: Mapping[str, Any]
    identity: object
    """The id of the memory, for error messages."""

    def invalid(self, field: str) -> Unreadable:
        """Return the error that reports the value of a field."""
        return Unreadable(
            f"{self.identity} has an invalid {field}={self.metadata.get(field)!r:.80}"
        )

    def writer(self, field: str) -> str:
        """Return a writer id."""
        writer = self.metadata.get(field)
        if not isinstance(writer, str) or not _WRITER.fullmatch(writer):
            raise self.invalid(field)
        return writer

    def counter(self, field: str) -> int:
        """Return the counter of a dot."""
        return self.integer(field, 1, 1 << 53)

    def integer(self, field: str, lowest: int, below: int) -> int:
        """Return an integer. A server may return it as a float, or as text."""
        value = self.metadata.get(field)
        if type(value) is int and lowest <= value < below:
            return value
        is_float = isinstance(value, float) and value.is_integer()
        is_text = isinstance(value, str) and _DECIMAL.fullmatch(value)
        if is_float or is_text:
            value = int(value)  # type: ignore[arg-type]
        if type(value) is not int or not lowest <= value < below:
            raise self.invalid(field)
        return value

    def text(self, field: str, most: int) -> str:
        """Return a text of 1 to ``most`` characters that UTF-8 can encode."""
        value = self.metadata.get(field)
        if not isinstance(value, str) or not 0 < len(value) <= most:
            raise self.invalid(field)
        if value.isascii():
            return value
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise self.invalid(field) from error
        return value

    def stamp(self, field: str) -> int:
        """Parse a stamp from its 16 hex digits."""
        text = self.metadata.get(field)
        if not isinstance(text, str) or not _STAMP.fullmatch(text):
            raise self.invalid(field)
        stamp = int(text, 16)
        if not 0 < stamp <= MAX_STAMP:
            raise self.invalid(field)
        return stamp

    def optional_id(self, field: str) -> str:
        """Return a branch id or a key id; an empty text if the field is left out."""
        text = self.metadata.get(field, "")
        if not isinstance(text, str) or not (text == "" or is_id(text)):
            raise self.invalid(field)
        return text
