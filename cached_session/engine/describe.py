"""Title and metadata of a session."""

from __future__ import annotations

from typing import Any

from cached_session.engine.engine import Engine
from cached_session.errors import InvalidArgument
from cached_session.history.ops import Mark, encode_mark
from cached_session.history.session_name import split_name
from cached_session.history.session_ref import SessionRef
from cached_session.journal.tables.session_infos import METADATA, TITLE
from cached_session.models import SessionInfo

__all__ = ["UNCHANGED", "read_info", "update_info"]


class Unchanged:
    """The type of `UNCHANGED`."""

    def __repr__(self) -> str:
        """Return a short text for signatures."""
        return "UNCHANGED"


UNCHANGED = Unchanged()
"""The default of an argument that changes nothing if it is left out. None has another meaning."""


async def read_info(engine: Engine, name: str) -> SessionInfo:
    """Return what is known about a session; see `CachedSession.info`."""
    found = await engine.journal.infos.of(SessionRef.of(name))
    prefix, session_id = split_name(name)
    return found or SessionInfo(session_id=session_id, key_prefix=prefix)


async def update_info(
    engine: Engine, name: str, title: str | Unchanged | None, metadata: dict[str, Any]
) -> bool:
    """Write title and metadata; return whether anything was written. See
    `CachedSession.update_info`.

    Raises:
        InvalidArgument: the title is no text, or a value cannot be stored; nothing is written.
    """
    marks = [Mark(METADATA, key, value) for key, value in metadata.items()]
    if not isinstance(title, Unchanged):
        if title is not None and not isinstance(title, str):
            raise InvalidArgument(f"title={title!r:.80} must be a text, or None to remove it")
        marks.append(Mark(TITLE, "", title))
    if not marks:
        return False
    for mark in marks:
        try:
            encode_mark(mark)
        except ValueError as error:
            raise InvalidArgument(f"title and metadata were not stored: {error}") from error
    await engine.journal.infos.update(engine.author(), SessionRef.of(name), marks)
    return True
