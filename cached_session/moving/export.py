"""Export of a session to a file or a stream."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import IO

from cached_session.errors import InvalidArgument
from cached_session.journal.journal import shielded
from cached_session.journal.sqlite.codec import decode_rows
from cached_session.moving.jsonl import encode_line
from cached_session.session import CachedSession, name_of, open_engine

__all__ = ["export_jsonl"]

FETCH_ITEMS = 500
"""Number of items that are read and written at a time."""


async def export_jsonl(session: CachedSession, target: str | os.PathLike[str] | IO[bytes]) -> int:
    """Write the items of a session, one JSON value per line, byte for byte as they are stored.

    The items are a snapshot of this journal in chronological order; nothing is fetched from the
    server. A file is created completely or not at all, even if the call is cancelled, and only its
    owner can read it. If the path is that of a device or a pipe, the items are written to it
    directly. Items are also written directly to an open stream; the caller flushes and closes the
    stream.

    Returns:
        The number of items written.

    Raises:
        InvalidArgument: the file cannot be written.
        OSError: the open stream cannot be written.
        SessionClosed, JournalError: as `CachedSession.get_items`.
    """
    if not isinstance(target, (str, os.PathLike)):
        return await _write_items(session, target)
    path = Path(target)
    try:
        return await _write_file(session, path)
    except OSError as error:
        raise InvalidArgument(f"{path} cannot be written: {error.strerror or error}") from error


async def _write_file(session: CachedSession, path: Path) -> int:
    if await asyncio.to_thread(lambda: path.exists() and not path.is_file()):
        # Open the file in a thread, because opening a pipe blocks until another process reads it.
        with await asyncio.to_thread(path.open, "wb") as stream:
            return await _write_items(session, stream)
    part = path.with_name(f"{path.name}.part")
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        with os.fdopen(os.open(part, flags, 0o600), "wb") as file:
            written = await _write_items(session, file)
            file.flush()
            await asyncio.to_thread(os.fsync, file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return written


async def _write_items(session: CachedSession, file: IO[bytes]) -> int:
    engine = await open_engine(session)
    written = 0
    async with engine.journal.history.stream(name_of(session)) as fetch:
        while rows := await fetch(FETCH_ITEMS):
            readable = [payload for payload, codec in rows if decode_rows([(payload, codec)])]
            await shielded(
                asyncio.ensure_future(
                    engine.journal.offload(file.writelines, map(encode_line, readable))
                )
            )
            written += len(readable)
    return written
