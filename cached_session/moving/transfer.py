"""The public calls that move histories: each reads a source and hands it to one session or many.

All of them are idempotent and resumable: what an earlier call brought from the same source, whole
or until it was killed, is skipped. Memory stays bounded, and the event loop is never held up.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import IO, Any

from cached_session.cache import SessionCache
from cached_session.engine import importer, network_calls
from cached_session.engine.engine import Engine
from cached_session.engine.importer import Row
from cached_session.errors import InvalidArgument, SyncError
from cached_session.history.ids import session_key
from cached_session.history.ops import Dot
from cached_session.history.parts import Part
from cached_session.journal.journal import shielded
from cached_session.journal.sqlite.codec import decode_rows
from cached_session.journal.tables import inbox, item_rows
from cached_session.journal.tables.sessions import session_row
from cached_session.models import ImportProgress, ImportReport
from cached_session.moving import files, sqlite
from cached_session.moving.spool import Spool
from cached_session.remote.ids import version_of
from cached_session.remote.wire import Placeholder, Unreadable, decode
from cached_session.session import CachedSession

__all__ = [
    "export_jsonl",
    "import_dakera_export",
    "import_dakera_session",
    "import_jsonl",
    "import_sqlite",
    "import_sqlite_session",
    "sqlite_sessions",
]

OnProgress = Callable[[ImportProgress], None]

SLICE = 500
"""Items or memories that are read at a time."""
LARGEST_PAGE = 1000
"""The server's own limit."""
PASSES = 5
"""A listing shifts while somebody writes: it is read until a pass shows nothing new, at most so
often."""

sqlite_sessions = sqlite.sessions


async def import_jsonl(
    session: CachedSession,
    path: str | os.PathLike[str],
    *,
    on_progress: OnProgress | None = None,
) -> ImportReport:
    """Add the items of a file with one JSON value a line; `export_jsonl` gives the same bytes back.

    A line that is no JSON is left out and counted. The file is read in a thread, bounded in memory.
    If cancelled, whole batches are in, and the next call goes on behind them.

    Args:
        session: where the items go.
        path: the file.
        on_progress: told after each batch; what it raises ends the import, behind that batch.

    Raises:
        InvalidArgument: the file cannot be read, or was rewritten since an earlier import.
        SessionClosed, JournalError: as `CachedSession.add_items`.
    """
    engine = await session._ready()
    total = await engine.journal.offload(lambda: sum(1 for _ in files.lines(path)))
    return await _carry(session, "jsonl", files.jsonl_rows(path), total, on_progress)


async def import_sqlite_session(
    session: CachedSession,
    path: str | os.PathLike[str],
    source_session_id: str | None = None,
    *,
    branch: str = sqlite.MAIN,
    messages_table: str = sqlite.MESSAGES,
    on_progress: OnProgress | None = None,
) -> ImportReport:
    """Add the items of one session of an Agents SDK database (``SQLiteSession`` and its kin).

    The database is only read, and may be in use. What is added to it later comes with the next
    call.

    Args:
        session: where the items go.
        path: the database.
        source_session_id: the session in it; by default the one with the same id.
        branch: of an ``AdvancedSQLiteSession``, which of its branches.
        messages_table: where the items are, if the database was made with another name.
        on_progress: told after each batch.

    Raises:
        InvalidArgument: it is no such database, or its history was rewritten since.
        SessionClosed, JournalError: as `CachedSession.add_items`.
    """
    source = session.session_id if source_session_id is None else source_session_id
    engine = await session._ready()
    total = await engine.journal.offload(sqlite.count, path, source, branch, messages_table)
    rows = sqlite.rows(path, source, branch, messages_table)
    return await _carry(session, f"sqlite:{branch}:{source}", rows, total, on_progress)


async def import_sqlite(
    cache: SessionCache,
    path: str | os.PathLike[str],
    *,
    branch: str = sqlite.MAIN,
    messages_table: str = sqlite.MESSAGES,
    on_progress: OnProgress | None = None,
) -> list[ImportReport]:
    """`import_sqlite_session` for every session of a database, each under its own id.

    Returns:
        A report for each session, in the order of the imports. If cancelled, those before are in.

    Raises:
        InvalidArgument, SessionClosed, JournalError: as `import_sqlite_session`.
    """
    reports = []
    for session_id in await asyncio.to_thread(sqlite.sessions, path, messages_table):
        async with cache.session(session_id, hydrate=False) as session:
            reports.append(
                await import_sqlite_session(
                    session,
                    path,
                    branch=branch,
                    messages_table=messages_table,
                    on_progress=on_progress,
                )
            )
    return reports


async def import_dakera_session(
    session: CachedSession,
    agent_id: str,
    *,
    on_progress: OnProgress | None = None,
) -> ImportReport:
    """Add the items that a session stored directly on the server that this one syncs with: one
    memory an item, its JSON as the content, its number as ``seq`` in the metadata.

    The memories stay on the server as they are.

    Args:
        session: where the items go.
        agent_id: the namespace of the direct session: prefix, colon and session id, such as
            ``agents:session:user-123``.
        on_progress: told after each batch.

    Raises:
        Unauthorized, SyncError: the server cannot be asked, or there is none; or it is from before
            listings had offsets, and shows only the newest of them: import its export instead.
        InvalidArgument: ``agent_id`` is empty, or the history was rewritten since.
        SessionClosed, JournalError: as `CachedSession.add_items`.
    """
    if not agent_id:
        raise InvalidArgument(f"agent_id={agent_id!r} must name the namespace to import from")
    engine = await session._ready()
    spool = Spool()
    skipped: set[str] = set()
    try:
        for _ in range(PASSES):
            before = len(spool)
            async for page in _pages(engine, agent_id):
                skipped |= await _spooled(engine.journal.offload, spool, page)
            if len(spool) == before:
                break
        return await _carry_spool(session, spool, len(skipped), on_progress)
    finally:
        spool.close()


async def import_dakera_export(
    session: CachedSession,
    path: str | os.PathLike[str],
    *,
    on_progress: OnProgress | None = None,
) -> ImportReport:
    """Add what a Dakera export (``GET /v1/export?format=jsonl``) holds of a session.

    Two kinds of memories are understood, each by its own look: those of this session as this
    library stores them, which are applied as if the server had listed them (their order, pops and
    clears included), and those of a direct session, which are appended in the order of their
    ``seq``. Everything else is skipped and counted.

    Raises:
        InvalidArgument: the file cannot be read, or the history was rewritten since.
        SessionClosed, JournalError: as `CachedSession.add_items`.
    """
    engine = await session._ready()
    before = session.status().items
    spool = Spool()
    unreadable = skipped = 0
    try:
        found = files.memories(path)
        while batch := await shielded(
            asyncio.ensure_future(engine.journal.offload(_slice, found, spool, session.session_id))
        ):
            unreadable += batch.unreadable
            skipped += batch.skipped
            if batch.parts or batch.explained:
                await _apply(session, batch)
        applied = session.status().items - before
        report = await _carry_spool(session, spool, skipped, on_progress)
    finally:
        spool.close()
    return ImportReport(
        report.session_id,
        report.added + max(0, applied),
        report.known,
        report.unreadable + unreadable,
        report.skipped,
    )


async def export_jsonl(session: CachedSession, target: str | os.PathLike[str] | IO[bytes]) -> int:
    """Write the session's items, one JSON value a line, byte for byte as they are stored; how many.

    It is one snapshot, in chronological order, of what this journal has: nothing is fetched. A file
    appears whole or not at all, also if cancelled, and only its owner can read it. An open stream
    is written to as it goes, and stays the caller's to flush and close; a device or a pipe that has
    a name is written to as well.

    Raises:
        InvalidArgument: the file cannot be written.
        OSError: the open stream cannot be written.
        SessionClosed, JournalError: as `CachedSession.get_items`.
    """
    if not isinstance(target, (str, os.PathLike)):
        return await _write(session, target)
    path = Path(target)
    try:
        return await _write_to(session, path)
    except OSError as error:
        raise InvalidArgument(f"{path} cannot be written: {error.strerror or error}") from error


async def _write_to(session: CachedSession, path: Path) -> int:
    if await asyncio.to_thread(lambda: path.exists() and not path.is_file()):
        # Opening a pipe waits for whoever reads it.
        with await asyncio.to_thread(path.open, "wb") as stream:
            return await _write(session, stream)
    part = path.with_name(f"{path.name}.part")
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        with os.fdopen(os.open(part, flags, 0o600), "wb") as file:
            written = await _write(session, file)
            file.flush()
            await asyncio.to_thread(os.fsync, file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return written


async def _write(session: CachedSession, file: IO[bytes]) -> int:
    engine = await session._ready()
    row = await engine.journal.read(lambda conn: session_row(conn, session.session_id))
    if row is None:
        return 0
    written = 0
    async with engine.journal.rows(item_rows.HISTORY, (row[0],)) as fetch:
        while found := await fetch(SLICE):
            readable = [payload for payload, codec in found if decode_rows([(payload, codec)])]
            await shielded(
                asyncio.ensure_future(
                    engine.journal.offload(file.writelines, map(files.line_of, readable))
                )
            )
            written += len(readable)
    return written


class _Slice:
    """Some lines of an export, sorted by what they are."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.explained: list[Dot] = []
        self.unreadable = self.skipped = self.lines = 0

    def __bool__(self) -> bool:
        return self.lines > 0


def _slice(found: Iterator[dict[str, Any] | None], spool: Spool, session_id: str) -> _Slice:
    batch, key = _Slice(), session_key(session_id)
    for memory in found:
        batch.lines += 1
        if memory is None:
            batch.unreadable += 1
        elif version_of(memory.get("id")) is not None:
            _sort(memory, key, batch)
        elif not spool.add(memory):
            batch.skipped += 1
        if batch.lines >= SLICE:
            break
    return batch


def _sort(memory: dict[str, Any], key: str, batch: _Slice) -> None:
    try:
        found = decode(memory, key)
    except Unreadable:
        batch.unreadable += 1
        return
    if isinstance(found, Part):
        batch.parts.append(found)
    elif isinstance(found, Placeholder):
        batch.explained.append(found.dot)
    else:
        batch.skipped += 1


async def _apply(session: CachedSession, batch: _Slice) -> None:
    engine, now = session._engine, session._engine.runtime.wall_ms()
    await engine.journal.write(
        lambda conn: inbox.apply_page(conn, session.session_id, batch.parts, batch.explained, now)
    )


async def _pages(engine: Engine, agent_id: str) -> AsyncIterator[list[dict[str, Any]]]:
    """The listing of a namespace, page by page, newest first; all of it, or an error."""
    offset, limit, before = 0, SLICE, None
    while page := await network_calls.listing(engine, agent_id, offset, limit):
        if offset and page[0].get("id") == before:
            # The same page for another offset: such a server gives one page, and no more.
            if len(page) < limit:
                return
            if limit < LARGEST_PAGE:
                offset, limit = 0, LARGEST_PAGE
                continue
            raise SyncError(
                f"{agent_id!r} has more than the {LARGEST_PAGE} memories that this server lists; "
                "nothing was added. Import its export instead (import_dakera_export)"
            )
        yield page
        before = page[0].get("id")
        offset += len(page)


async def _spooled(
    offload: Callable[..., Any], spool: Spool, page: list[dict[str, Any]]
) -> set[str]:
    """Put a page's items in the spool; the ids of what is no item."""

    def put() -> set[str]:
        return {str(memory.get("id")) for memory in page if not spool.add(memory)}

    found: set[str] = await shielded(asyncio.ensure_future(offload(put)))
    return found


async def _carry_spool(
    session: CachedSession,
    spool: Spool,
    skipped: int,
    on_progress: OnProgress | None,
) -> ImportReport:
    # One name for both ways: what came from the server does not come again from its export.
    report = await _carry(session, "dakera", spool.rows(), len(spool), on_progress)
    return ImportReport(report.session_id, report.added, report.known, report.unreadable, skipped)


async def _carry(
    session: CachedSession,
    source: str,
    rows: Iterator[Row],
    total: int | None,
    on_progress: OnProgress | None,
) -> ImportReport:
    engine = await session._ready()
    batches: AsyncIterator[list[Row]] = importer.threaded(engine, rows)
    async with aclosing(batches):  # type: ignore[type-var]
        return await importer.carry(
            engine,
            session.session_id,
            source,
            batches,
            private=session._private,
            total=total,
            on_progress=on_progress,
        )
